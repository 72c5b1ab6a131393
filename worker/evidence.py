"""The owner's own proof: receipts that the pool has countersigned, in `receipts.jsonl` beside the keys.

Each line holds all it takes to show later, with the pool's public key and nothing else, that the pool has
this receipt and in which place: the body and both signatures. Two files at most; the older one is replaced.
"""

import json
from pathlib import Path
from typing import Final

import structlog

from potluck import chain
from potluck.home import make_folder
from potluck.receipts import verify
from potluck.v1 import session_pb2
from worker.journal import SignedReceipt

FILE: Final = "receipts.jsonl"
OLDER: Final = "receipts.old.jsonl"
FILE_BYTES_MAX: Final = 8 << 20  # some 8,000 receipts

log = structlog.get_logger("worker.evidence")


class Evidence:
    """`public_key`: the pool's, raw; empty where this worker joined before pools handed it out."""

    def __init__(self, folder: Path, worker_id: str, public_key: bytes) -> None:
        self._folder, self._worker_id, self._public_key = folder, worker_id, public_key
        self._trouble = False
        self.kept = sum(_lines(folder / name) for name in (OLDER, FILE))
        self.refused = 0  # since the start: countersignatures that are not the pool's

    def add(self, ack: session_pb2.ReceiptAck, receipt: SignedReceipt | None) -> bool:
        """Keep what the pool answered to the receipt; whether it was worth keeping.

        A repeated answer finds the receipt forgotten already (None). Nothing here stops the worker.
        """
        if receipt is None or not ack.number:
            return False
        if self._public_key and not self._fits(ack, receipt):
            self.refused += 1
            log.warning(
                "the pool's countersignature of a receipt is wrong",
                action="countersignature_refused",
                job=receipt.attempt.job_id,
            )
            return False
        line = {
            "number": ack.number,
            "at": ack.at,
            "worker": self._worker_id,
            "body": receipt.body.decode("ascii"),
            "signature": receipt.signature.hex(),
            "state": ack.state,
            "previous": ack.previous,
            "hash": ack.hash,
            "countersignature": ack.countersignature.hex(),
        }
        return self._append(json.dumps(line, separators=(",", ":")).encode() + b"\n")

    def _fits(self, ack: session_pb2.ReceiptAck, receipt: SignedReceipt) -> bool:
        """Whether the pool signed this very receipt in this place."""
        covered = chain.receipt_bytes(
            number=ack.number,
            at=ack.at,
            worker=self._worker_id,
            body=receipt.body,
            signature=receipt.signature,
            state=ack.state,
            previous=ack.previous,
        )
        same = chain.receipt_hash(covered, ack.countersignature) == ack.hash
        signed = chain.countersigned(chain.hash_of(covered))
        return same and verify(self._public_key, signed, ack.countersignature)

    def _append(self, line: bytes) -> bool:
        path = self._folder / FILE
        try:
            if self._size(path) + len(line) > FILE_BYTES_MAX:
                self.kept -= _lines(self._folder / OLDER)
                path.replace(self._folder / OLDER)
            with path.open("ab") as file:
                file.write(line)
        except OSError as error:
            if not self._trouble:  # once: a full disk refuses every receipt
                self._trouble = True
                log.warning("receipts cannot be kept", action="evidence_failed", why=str(error))
            return False
        self._trouble = False
        self.kept += 1
        return True

    def _size(self, path: Path) -> int:
        """In bytes. Where there is no file yet, its folder is made. Raises OSError."""
        try:
            return path.stat().st_size
        except FileNotFoundError:
            make_folder(self._folder)
            return 0


def _lines(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return sum(1 for _ in file)
    except OSError:
        return 0
