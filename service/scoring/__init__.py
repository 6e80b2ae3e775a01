"""Pure numbers: from label logprobs to a decision."""
