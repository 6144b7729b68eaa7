"""Compiles a train step for an absent device and prints the content of the program, as JSON.

It is a process of its own, because of the compiler's flags.

python tests/parallel/programs.py v5e-8 mesh.data=1 mesh.fsdp=8
"""

import json
import re
import sys

from cramjax.planning import cards, environment

SMALL = (
    "model.n_layers=2", "model.d_model=128", "model.n_heads=2", "model.d_ff=256",
    "model.unroll=True", "data.vocab_size=1024", "data.seq_len=128", "batch_size=16",
    "microbatch_size=16", "schedule.batch_ramp=0", "precision=bfloat16",
)  # fmt: skip
COLLECTIVES = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"


def main(device, recipe, *overrides):
    environment.prepare()
    import jax

    from cramjax.config.resolve import get_config
    from cramjax.planning import targets
    from cramjax.training import session

    config = get_config(recipe, *SMALL, *overrides)
    vocabulary = session.AssumedVocabulary(
        vocab_size=config.data.vocab_size, extra_ids=config.data.extra_ids
    )
    made = session.session_on(config, vocabulary, targets.devices(cards.find(device)))
    compiled, _ = session.compile_train_step(made)
    text, memory = compiled.as_text(), compiled.memory_analysis()
    operands = operand_types(text)
    found = {
        "attention": made.attention,
        "collectives": [
            [kind, max(_sizes(shape), default=1)]
            for shape, kind in re.findall(rf"= (\(.*?\)|\S+) ({COLLECTIVES})(?:-start)?\(", text)
        ],
        "scattering": len(re.findall(r"reduce-scatter|all-reduce-scatter", text)),
        "calls": sorted(set(re.findall(r'custom_call_target="([^"]+)"', text))),
        "ours": sorted(set(re.findall(r'op_name="[^"]*/(\w+)/pallas_call"', text))),
        "gradients_of_attention": sorted(set(_gradients_of_attention(text))),
        "operands": sorted(set(operands)),
        "n_dots": len(operands) // 2,
        "host": re.findall(r" (infeed|outfeed|send|recv)(?:-done)?\(", text)
        + re.findall(r"S\(5\)", text),
        "donated": memory.alias_size_in_bytes,
        "state": sum(
            leaf.sharding.shard_shape(leaf.shape) != () and _count(leaf) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(made.abstract)
        ),
        "n_params": made.n_params,
        "largest_param": max(leaf.size for leaf in jax.tree.leaves(made.abstract.params)),
    }
    print(json.dumps(found))


def operand_types(text):
    """Returns the element types of the operands of all products in a program, two for each."""
    types = dict(re.findall(r"%([\w.\-]+) = (\w+)\[", text))
    # Products of older cards are calls of cuBLAS. Those with batches name the batch axes first.
    operands = r"(?:dot|custom-call)\(%([\w.\-]+), %([\w.\-]+)\)"
    ending = r"(?:, custom_call_target=\"__cublas|, lhs_(?:batch|contracting))"
    found = []
    for left, right in re.findall(operands + ending, text):
        found += [types.get(left, "?"), types.get(right, "?")]
    return found


def _gradients_of_attention(text):
    """Yields the number of gradients that each backward pass of cuDNN's attention writes."""
    call = r"= \((.*?)\) custom-call\(.*?custom_call_target=\"__cudnn\$fmha\w*Backward"
    # The last result is scratch memory.
    for results in re.findall(call, text):
        yield len(re.findall(r"\w+\[", results)) - 1


def _sizes(shape):
    for dims in re.findall(r"\w+\[([\d,]*)\]", shape):
        size = 1
        for dim in filter(None, dims.split(",")):
            size *= int(dim)
        yield size


def _count(leaf):
    size = 1
    for dim in leaf.sharding.shard_shape(leaf.shape):
        size *= dim
    return size


if __name__ == "__main__":
    main(*sys.argv[1:])
