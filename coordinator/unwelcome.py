"""Why a worker's call is ended."""

import grpc


class Unwelcome(Exception):  # noqa: N818 -- named for what happened
    """This stream may not be; the code and the sentence go to the worker."""

    def __init__(self, code: grpc.StatusCode, sentence: str) -> None:
        super().__init__(sentence)
        self.code, self.sentence = code, sentence
