"""What a chat asks for beyond its messages: which texts count, which functions may be called, what its
worker must be able to do.
"""

import json

from coordinator.tokens import TokenCounter
from potluck.v1 import work_pb2

TOOLS, JSON_SCHEMA, LORA = "tools", "json_schema", "lora"  # of ServedModel.features


def counted(chat: work_pb2.ChatWork) -> list[str]:
    """The texts that are part of the prompt beside the messages' own: tools as templates write them, calls,
    what the answer has to look like, and the reasoning since the last question (templates drop what is
    older).
    """
    texts = [_written(tool) for tool in chat.tools]
    since = max((at for at, message in enumerate(chat.messages) if message.role == "user"), default=-1)
    for at, message in enumerate(chat.messages):
        texts += [text for call in message.tool_calls for text in (call.id, call.name, call.arguments)]
        texts += [message.tool_call_id, message.reasoning if at > since else ""]
    return [text for text in (*texts, chat.structure.schema) if text]


def _written(tool: work_pb2.Tool) -> str:
    """As chat templates write a tool: the OpenAI API's JSON."""
    function = json.dumps({"name": tool.name, "description": tool.description}, ensure_ascii=False)
    parameters = f', "parameters": {tool.parameters}' if tool.parameters else ""
    return f'{{"type": "function", "function": {function[:-1]}{parameters}}}}}'


def callable_names(work: work_pb2.Work) -> frozenset[str]:
    """The functions that the answer may call: none without tools, or where the choice is none."""
    if work.WhichOneof("kind") != "chat" or work.chat.tool_choice == "none":
        return frozenset()
    return frozenset(tool.name for tool in work.chat.tools)


def needs(work: work_pb2.Work) -> frozenset[str]:
    """The features without which a worker cannot do this.

    Whatever must hold of the answer (a schema, strict arguments, a call that is required) holds because the
    engine lets the model say nothing else: that is what `json_schema` stands for.
    """
    adapted = frozenset((LORA,) * work.HasField("adapter"))
    if work.WhichOneof("kind") != "chat":
        return adapted
    chat = work.chat
    named = callable_names(work)
    held = chat.structure.kind or (
        named and (chat.tool_choice in ("required", "function") or any(tool.strict for tool in chat.tools))
    )
    talks_of_tools = named or any(message.tool_calls or message.tool_call_id for message in chat.messages)
    return adapted | frozenset((TOOLS,) * bool(talks_of_tools) + (JSON_SCHEMA,) * bool(held))


def counts_of(counter: TokenCounter, model: str, work: work_pb2.Work) -> tuple[int, ...]:
    """The tokens of each prompt, as the counter knows them now."""
    if work.HasField("chat"):
        return (counter.count_chat(model, list(work.chat.messages), counted(work.chat)),)
    if work.HasField("completion"):
        ids, prompt = work.completion.prompt_ids, work.completion.prompt
        return (len(ids) or counter.count_text(model, prompt),)
    inputs = work.embedding.inputs
    return tuple(len(i.ids) or counter.count_text(model, i.text) for i in inputs)
