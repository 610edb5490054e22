"""A chat template for clients that add no special tokens to what a template wrote."""

from export.clients.packing import Packing
from export.runtime.prompter import Prompter


def beginning_written(packing: Packing, template: str) -> str:
    """Return a chat template that writes the beginning token where the tokenizer would add it."""
    facts, form = packing.facts, packing.manifest.picture_form
    prompter = Prompter.from_folder(packing.artifact.folder, form.token, facts.eos_token_ids)
    start = prompter.special_tokens.get("bos_token")
    added = prompter.encode_text("a", add_special_tokens=True)
    bare = prompter.encode_text("a")
    turn = {"role": "user", "content": [{"type": "text", "text": "a"}]}
    written = start is not None and prompter.render([turn]).startswith(start)
    return template if written or added == bare else "{{ bos_token }}" + template
