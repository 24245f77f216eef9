"""What a run leaves behind: rounds.jsonl, TensorBoard events, result.json, the model."""
