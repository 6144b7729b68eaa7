"""Exports a model for others to use.

The way of one export, which `export.export` follows from top to bottom:

    stock     the model as a class of `transformers` holds it
    saving    writes config.json, the weights and the tokenizer, and reads them back
    classes   checks names and shapes against `classes.json`
    parity    compares logits with torch's, if asked
    facts     what the run or the finetuning noted about the model
    card      README.md from these facts; metadata: the YAML block in front of it
    push      sends the folder to the Hugging Face Hub
"""
