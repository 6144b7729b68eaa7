"""Models on disk.

checkpoint  the checkpoints of a run: saved while it trains, restored when it goes on
packed      compressed models at their true size
pretrained  reads any model: a checkpoint, a packed model, a directory of `transformers`, an
            id on the Hub
"""
