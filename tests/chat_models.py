"""LangChain chat models for tests: one that follows a script, one that asks the loopback server."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import openai
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, convert_to_openai_messages
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import Field, PrivateAttr, SecretStr

Said = str | AIMessage | Exception


def result(said: Said) -> ChatResult:
    if isinstance(said, Exception):
        raise said
    message = AIMessage(said, response_metadata={"finish_reason": "stop"}) if isinstance(said, str) else said
    return ChatResult(generations=[ChatGeneration(message=message)])


class ScriptedChatModel(BaseChatModel):
    """Says what `script(messages, call)` gives (or awaits), calls counted from 0: a text, a message, an exception."""

    script: Callable[[list[BaseMessage], int], Any] = Field(exclude=True)
    model: str = "scripted-chat"
    temperature: float | None = None
    api_key: SecretStr | None = None
    calls: list[list[BaseMessage]] = Field(default_factory=list, exclude=True)
    arguments: list[dict[str, Any]] = Field(default_factory=list, exclude=True)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        raise AssertionError("the backend calls ainvoke")

    async def _agenerate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        self.calls.append(messages)
        self.arguments.append({"stop": stop, **kwargs})
        said = self.script(messages, len(self.calls) - 1)
        return result(await said if inspect.isawaitable(said) else said)


class BlockingChatModel(BaseChatModel):
    """Has no async implementation, like many small ones: LangChain runs it on a thread."""

    text: str

    @property
    def _llm_type(self) -> str:
        return "blocking"

    def _generate(self, *_: Any, **__: Any) -> ChatResult:
        return result(self.text)


class HttpChatModel(BaseChatModel):
    """Asks an OpenAI-compatible endpoint through the openai SDK, as provider packages do."""

    base_url: str
    model_name: str = "loopback"
    api_key: SecretStr = SecretStr("none")
    _clients: dict[asyncio.AbstractEventLoop, openai.AsyncOpenAI] = PrivateAttr(default_factory=dict)

    @property
    def _llm_type(self) -> str:
        return "http"

    def _generate(self, *_: Any, **__: Any) -> ChatResult:
        raise AssertionError("the backend calls ainvoke")

    async def _agenerate(self, messages: list[BaseMessage], *_: Any, **kwargs: Any) -> ChatResult:
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            key = self.api_key.get_secret_value()
            self._clients[loop] = openai.AsyncOpenAI(base_url=self.base_url, api_key=key, max_retries=0)
        reply = await self._clients[loop].chat.completions.create(
            model=self.model_name, messages=convert_to_openai_messages(messages), extra_body=kwargs
        )
        choice, usage = reply.choices[0], reply.usage
        message = AIMessage(
            choice.message.content or "",
            additional_kwargs={"refusal": choice.message.refusal} if choice.message.refusal else {},
            response_metadata={"finish_reason": choice.finish_reason},
            usage_metadata=None
            if usage is None
            else {
                "input_tokens": usage.prompt_tokens,
                "output_tokens": usage.completion_tokens,
                "total_tokens": usage.total_tokens,
            },
        )
        return result(message)

    async def aclose(self) -> None:
        for client in self._clients.values():
            await client.close()
