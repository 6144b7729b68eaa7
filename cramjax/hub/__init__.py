"""Models as Hugging Face `transformers` writes them: their configuration, weights and tokenizer, read without torch or transformers."""
