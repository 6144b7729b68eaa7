"""Reads and describes models in the format of Hugging Face `transformers`.

It needs neither torch nor transformers:

    families     config.json ↔ our configurations, one entry for each `model_type`
    tables       names of tensors ↔ our parameters
    equivalence  the family whose model computes the same as one of our networks
    directory    reads a folder that `save_pretrained` wrote
    sentence_files  the files of `sentence_transformers` beside it
    download     fetches a model from the Hugging Face Hub
"""
