"""Every task's files as they are distributed, with a few rows each, and the rows they hold."""

import json


def tsv(*lines):
    return "".join("\t".join(map(str, line)) + "\n" for line in lines)


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


MNLI = [
    *("index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse"),
    *("sentence1_parse", "sentence2_parse", "sentence1", "sentence2"),
]
STSB = "index genre filename year old_index source1 source2 sentence1 sentence2".split()
MRPC = ["#1 ID", "#2 ID", "#1 String", "#2 String"]
QQP = "id qid1 qid2 question1 question2 is_duplicate".split()
QNLI = ["index", "question", "sentence", "label"]
MNLI_ROW = [*"0 1 2 fiction (a) (b) (c) (d)".split(), 'She said "no .', "She refused ."]
PAIR = ["index", "sentence1", "sentence2", "label"]

GLUE = {
    "cola": {
        "CoLA/train.tsv": tsv(
            ["gj04", 1, "", 'He said "go.'], ["gj04", 0, "*", "Go\u2028he said."]
        ),
        "CoLA/dev.tsv": tsv(["gj04", 1, "", "They left."]),
        "CoLA/test.tsv": tsv(["index", "sentence"], [0, "Bill left."]),
    },
    "sst2": {
        "SST-2/train.tsv": tsv(["sentence", "label"], ["a joy ", 1]).replace("\n", "\r\n"),
        "SST-2/dev.tsv": tsv(["sentence", "label"], ["a bore", 0]),
        "SST-2/test.tsv": tsv(["index", "sentence"], [0, "so so"]),
    },
    "mrpc": {
        "MRPC/train.tsv": "\ufeff" + tsv(["Quality", *MRPC], [1, 11, 12, '" A " b', "A b"]),
        "MRPC/dev.tsv": tsv(["Quality", *MRPC], [0, 11, 12, "A", "B"]),
        "MRPC/test.tsv": tsv(["index", *MRPC], [0, 11, 12, "A", "B"]),
    },
    "stsb": {
        "STS-B/train.tsv": tsv([*STSB, "score"], [0, *"gfyoss", "A plane.", "A jet.", "4.750"]),
        "STS-B/dev.tsv": tsv([*STSB, "score"], [0, *"gfyoss", "A plane.", "A cat.", "0.2"]),
        "STS-B/test.tsv": tsv(STSB, [0, *"gfyoss", "A plane.", "A jet."]),
    },
    "qqp": {
        "QQP/train.tsv": tsv(QQP, [5, 1, 2, "Why?", "How?", 0], [6, 1, "cut"]),
        "QQP/dev.tsv": tsv(QQP, [7, 1, 2, "Why?", "Why so?", 1]),
        "QQP/test.tsv": tsv(["id", "question1", "question2"], [0, "Why?", "How?"]),
    },
    "mnli": {
        "MNLI/train.tsv": tsv(
            [*MNLI, "label1", "gold_label"], [*MNLI_ROW, "neutral", "entailment"]
        ),
        "MNLI/dev_matched.tsv": tsv(
            [*MNLI, *(f"label{i}" for i in range(1, 6)), "gold_label"],
            [*MNLI_ROW, *["neutral"] * 6],
        ),
        "MNLI/dev_mismatched.tsv": tsv(
            [*MNLI, *(f"label{i}" for i in range(1, 6)), "gold_label"],
            [*MNLI_ROW, *["neutral"] * 5, "contradiction"],
        ),
        "MNLI/test_matched.tsv": tsv(MNLI, MNLI_ROW),
        "MNLI/test_mismatched.tsv": tsv(MNLI, MNLI_ROW),
    },
    "qnli": {
        "QNLI/train.tsv": tsv(QNLI, [0, "Who?", "He did.", "entailment"]),
        "QNLI/dev.tsv": tsv(QNLI, [0, "Who?", "It did.", "not_entailment"]),
        "QNLI/test.tsv": tsv(QNLI[:3], [0, "Who?", "It did."]),
    },
    "rte": {
        "RTE/train.tsv": tsv(PAIR, [0, "A b.", "B.", "not_entailment"]),
        "RTE/dev.tsv": tsv(PAIR, [0, "A b.", "A.", "entailment"]),
        "RTE/test.tsv": tsv(PAIR[:3], [0, "A b.", "A."]),
    },
    "wnli": {
        "WNLI/train.tsv": tsv(PAIR, [0, "It broke.", "The cup broke.", 1]),
        "WNLI/dev.tsv": tsv(PAIR, [0, "It broke.", "The table broke.", 0]),
        "WNLI/test.tsv": tsv(PAIR[:3], [0, "It broke.", "The cup broke."]),
    },
}

MULTIRC = {
    "idx": 3,
    "version": 1.1,
    "passage": {
        "text": "Susan had a party.",
        "questions": [
            {
                "idx": 8,
                "question": "Who?",
                "answers": [
                    {"idx": 1, "text": "Susan", "label": 1},
                    {"idx": 2, "text": "Bob", "label": 0},
                ],
            },
            {"idx": 9, "question": "What?", "answers": [{"idx": 3, "text": "a party", "label": 1}]},
        ],
    },
}
RECORD = {
    "source": "CNN",
    "idx": 4,
    "passage": {
        "text": "Ann met Bob in Rome.\n@highlight\nAnn left",
        "entities": [{"start": 0, "end": 2}, {"start": 8, "end": 10}, {"start": 32, "end": 34}],
    },
    "qas": [
        {
            "idx": 7,
            "query": "@placeholder went away",
            "answers": [{"start": 0, "end": 2, "text": "Ann"}],
        }
    ],
}
WSC = {
    "idx": 0,
    "text": "Mark told Pete many lies. He was wrong.",
    "label": True,
    "target": {"span1_index": 0, "span1_text": "Mark", "span2_index": 5, "span2_text": "He"},
}
WIC = {
    "idx": 0,
    "word": "place",
    "sentence1": "Come to my place later.",
    "sentence2": "No place for it.",
    "start1": 11,
    "end1": 16,
    "start2": 3,
    "end2": 8,
    "version": 1.1,
    "label": False,
}
COPA = {
    "idx": 0,
    "premise": "I fell.",
    "choice1": "It was icy.",
    "choice2": "I ran home.",
    "question": "cause",
    "label": 0,
}
PREMISE = {"idx": 0, "premise": "It was a dog.", "hypothesis": "It was an animal."}


def unlabelled(row):
    return {key: value for key, value in row.items() if key != "label"}


def superglue(folder, row, test=None):
    files = {f"{folder}/{name}.jsonl": jsonl(row) for name in ("train", "val")}
    return files | {f"{folder}/test.jsonl": jsonl(test or unlabelled(row))}


def without_answers(raw):
    questions = []
    for question in raw["passage"]["questions"]:
        answers = [unlabelled(answer) for answer in question["answers"]]
        questions.append(question | {"answers": answers})
    return raw | {"passage": raw["passage"] | {"questions": questions}}


SUPERGLUE = {
    "boolq": superglue(
        "BoolQ", {"idx": 0, "question": "is it", "passage": "It is.", "label": True}
    ),
    "cb": superglue("CB", PREMISE | {"label": "neutral"}),
    "copa": superglue("COPA", COPA),
    "multirc": superglue("MultiRC", MULTIRC, without_answers(MULTIRC)),
    "record": superglue(
        "ReCoRD", RECORD, RECORD | {"qas": [{"idx": 7, "query": "@placeholder went away"}]}
    ),
    "rte": superglue("RTE", PREMISE | {"label": "not_entailment"}),
    "wic": superglue("WiC", WIC),
    "wsc": superglue("WSC", WSC),
    "axb": {
        "AX-b/AX-b.jsonl": jsonl(
            {"idx": "0", "sentence1": "A.", "sentence2": "B.", "label": "entailment", "logic": ""}
        )
    },
    "axg": {"AX-g/AX-g.jsonl": jsonl(PREMISE | {"label": "entailment", "pair_id": 5})},
}

FIRST_ROWS = {
    ("glue", "cola"): {"idx": 0, "sentence": 'He said "go.', "label": 1},
    ("glue", "sst2"): {"idx": 0, "sentence": "a joy ", "label": 1},
    ("glue", "mrpc"): {"idx": 0, "sentence1": '" A " b', "sentence2": "A b", "label": 1},
    ("glue", "stsb"): {"idx": 0, "sentence1": "A plane.", "sentence2": "A jet.", "label": 4.75},
    ("glue", "qqp"): {"idx": 0, "question1": "Why?", "question2": "How?", "label": 0},
    ("glue", "mnli"): {
        "idx": 0,
        "premise": 'She said "no .',
        "hypothesis": "She refused .",
        "label": 0,
    },
    ("glue", "qnli"): {"idx": 0, "question": "Who?", "sentence": "He did.", "label": 0},
    ("glue", "rte"): {"idx": 0, "sentence1": "A b.", "sentence2": "B.", "label": 1},
    ("glue", "wnli"): {
        "idx": 0,
        "sentence1": "It broke.",
        "sentence2": "The cup broke.",
        "label": 1,
    },
    ("superglue", "boolq"): {"idx": 0, "question": "is it", "passage": "It is.", "label": 1},
    ("superglue", "cb"): PREMISE | {"label": 2},
    ("superglue", "copa"): COPA,
    ("superglue", "multirc"): {
        "idx": (3, 8, 1),
        "group": (3, 8),
        "paragraph": "Susan had a party.",
        "question": "Who?",
        "answer": "Susan",
        "label": 1,
    },
    ("superglue", "record"): {
        "idx": (4, 7),
        "passage": RECORD["passage"]["text"],
        "query": "@placeholder went away",
        "entities": ["Ann", "Bob"],
        "label": ["Ann"],
    },
    ("superglue", "rte"): PREMISE | {"label": 1},
    ("superglue", "wic"): {key: WIC[key] for key in WIC if key != "version"} | {"label": 0},
    ("superglue", "wsc"): {"idx": 0, "text": WSC["text"], "label": 1} | WSC["target"],
    ("superglue", "axb"): {"idx": 0, "sentence1": "A.", "sentence2": "B.", "label": 0},
    ("superglue", "axg"): PREMISE | {"group": 0, "label": 0},
}


def write(folder, suite):
    """Write the files of a suite to `folder`."""
    tasks = GLUE if suite == "glue" else SUPERGLUE
    for files in tasks.values():
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode())
    return folder
