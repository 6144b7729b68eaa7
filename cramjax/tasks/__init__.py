"""Tasks beyond GLUE: tags of words, answers in a text, embeddings, and tasks that a file describes.

catalogue  finds tasks by name and opens their data
tags       schemes of tags, entities, and their scores as seqeval and conlleval count them
columns    reads sentences with a tag for each word
answers    scores of SQuAD, as its scripts count them
squad      reads SQuAD's files
retrieval  scores of embeddings: searches, and cosines of pairs
tables     reads rows of TSV, CSV, JSON lines and Parquet
own        reads a task file
own_data   reads the data of a task file
metric_names  names the metrics of a split and of a type of entities
"""
