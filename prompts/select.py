"""The prompt by which a teacher chooses, from one part of a long history, the items that tell who the user is."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

from cp_agents.prompts.render import FENCE_CLOSE, FENCE_OPEN, built_in_languages
from cp_agents.schema import Message
from cp_agents.taxonomy import Taxonomy

_FALLBACK = "en"


@dataclass(frozen=True)
class SelectPrompt:
    """For one taxonomy in one language."""

    system: str
    user: str
    """With {{record}} and {{most}}."""

    def messages(self, items: str, most: int) -> tuple[Message, ...]:
        """System and user; `items` are numbered lines without a fence tag, `most` how many may be chosen."""
        fenced = f"{FENCE_OPEN}\n{items}\n{FENCE_CLOSE}"
        before, after = self.user.replace("{{most}}", str(most)).split("{{record}}")
        return Message("system", self.system), Message("user", f"{before}{fenced}{after}")


def load_select_prompt(taxonomy: Taxonomy, language: str) -> SelectPrompt:
    """In `language`, or that of which it is the compact form; in English for a folder of one's own templates."""
    base = language.partition("-")[0]
    folder = resources.files("cp_agents.prompts").joinpath(
        base if base in built_in_languages() else _FALLBACK
    )
    system, user = (
        folder.joinpath(name).read_text("utf-8").strip() for name in ("select.md", "select_user.md")
    )
    return SelectPrompt(system.replace("{{names}}", ", ".join(taxonomy.names)), user)
