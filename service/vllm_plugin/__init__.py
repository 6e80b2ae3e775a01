"""Activated LoRA for vLLM 0.32, as a few small patches. Loaded by vLLM in each of its processes.

Entry point `vllm.general_plugins`. Knows vLLM and torch, nothing of the rest of `service`. `ledger.py` lists the
patches with the reason of each; `report.py` lets the API process ask every other process what is active there,
because vLLM goes on without a plugin that fails to load.
"""


def register() -> None:
    """Apply every patch of the ledger in this process; doing it twice does nothing. Raises PatchError.

    A process that a server has started for its engine lives as long as that server from here on.
    """
    from service.vllm_plugin.ledger import apply_all
    from service.vllm_plugin.lifetime import follow_parent

    apply_all()
    follow_parent()
