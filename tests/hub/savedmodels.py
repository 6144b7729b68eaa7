"""Tiny random models of `transformers`, and directories that hold them."""

import pathlib

import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers, processors

VOCAB_SIZE = 131
BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
T5_TOKENS = ("<pad>", "</s>", "<unk>")
N_SENTINELS = 7
N_PADDING_ROWS = 11

_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 104,
    "max_position_embeddings": 40,
    "attn_implementation": "eager",
}
_MODERN = {
    "num_hidden_layers": 7,
    "global_attn_every_n_layers": 3,
    "local_attention": 8,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "cls_token_id": 2,
    "eos_token_id": 3,
    "sep_token_id": 3,
}
_BIASES = dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"), True)
_T5 = {
    "vocab_size": VOCAB_SIZE,
    "d_model": 72,
    "d_ff": 104,
    "num_layers": 3,
    "decoder_start_token_id": 0,
}

# case → (class without "Config" or "ForMaskedLM", the numbers of its configuration)
CASES = {
    "bert": ("Bert", _SIZES),
    "megatron-bert": ("MegatronBert", _SIZES),
    "roberta": ("Roberta", _SIZES | {"type_vocab_size": 1}),
    "roberta-prelayernorm": ("RobertaPreLayerNorm", _SIZES),
    "modernbert": ("ModernBert", _SIZES | _MODERN),
    "modernbert, biases": ("ModernBert", _SIZES | _MODERN | _BIASES | {"num_hidden_layers": 2}),
    "t5 v1.0": ("T5", _T5 | {"num_decoder_layers": 2, "num_heads": 5, "d_kv": 16}),
    "t5 v1.1": (
        "T5",
        _T5
        | {
            "num_heads": 3,
            "d_kv": 7,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
        },
    ),
}


def config_of(case):
    kind, numbers = CASES[case]
    return getattr(transformers, f"{kind}Config")(**numbers)


def build(case, suffix=None):
    """Returns the model of a case, or one of its configuration with another head.

    All weights are away from 0 and 1.
    """
    kind, _ = CASES[case]
    suffix = suffix or ("ForConditionalGeneration" if kind == "T5" else "ForMaskedLM")
    torch.manual_seed(0)
    model = getattr(transformers, kind + suffix)(config_of(case)).eval()
    if case == "t5 v1.1":  # transformers ties it all the same
        model.lm_head.weight = torch.nn.Parameter(torch.randn(VOCAB_SIZE, 72))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
            if kind == "T5" and (name.endswith(".q.weight") or "shared" in name):
                # Scores are not scaled: larger ones make the softmax all or nothing.
                weight.mul_(0.3)
            if kind.startswith("Roberta") and "position_embeddings" in name:
                weight[:2] = 0.0  # rows that are no positions
    return model


def tokenizer_of(case):
    """Returns a tokenizer of words with the special tokens of the family."""
    extra, n_padding = [], 0
    if case.startswith("t5"):
        special, template, unk = T5_TOKENS, "$A </s>", "<unk>"
        # Sentinels count down, and the embedding has rows that pad it.
        extra = [f"<extra_id_{i}>" for i in reversed(range(N_SENTINELS))]
        n_padding = N_PADDING_ROWS
    elif case.startswith("roberta"):
        special, template, unk = ROBERTA_TOKENS, "<s> $A </s>", "<unk>"
    else:
        special, template, unk = BERT_TOKENS, "[CLS] $A [SEP]", "[UNK]"
    n_words = VOCAB_SIZE - n_padding - len(special) - len(extra)
    names = [*special, *(f"w{i}" for i in range(n_words)), *extra]
    ids = {name: number for number, name in enumerate(names)}

    tokenizer = tokenizers.Tokenizer(models.WordLevel(ids, unk_token=unk))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([name for name in names if name[0] in "[<"])
    used = [(name, ids[name]) for name in template.split() if name in ids]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    # Some files on the Hub have these. Reading such a file must drop them.
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8, pad_token=special[0])
    return tokenizer


def save(case, directory: pathlib.Path, model=None, **options):
    """Writes a model and its tokenizer into a directory; returns the model."""
    model = model or build(case)
    model.save_pretrained(directory, **options)
    tokenizer_of(case).save(str(directory / "tokenizer.json"))
    return model
