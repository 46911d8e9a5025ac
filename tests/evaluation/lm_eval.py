"""Reads the results of an evaluation as lm-eval's tools do: python lm_eval.py FOLDER, one JSON object, task to samples."""

import json
import pathlib
import sys

# This file has the name of the package.
sys.path = [place for place in sys.path if pathlib.Path(place).resolve() != pathlib.Path(__file__).parent.resolve()]
from datasets import load_dataset
from lm_eval import utils

files = [str(path) for path in pathlib.Path(sys.argv[1]).rglob("*") if path.is_file()]
latest = utils.get_latest_filename(utils.get_results_filenames(files))
results = json.loads(pathlib.Path(latest).read_text(encoding="utf-8"))
table = utils.make_table(results)
found = {}
for task, config in results["configs"].items():
    samples = [
        path
        for path in utils.get_sample_results_filenames(files)
        if utils.get_file_task_name(pathlib.Path(path).name) == task
    ]
    path = utils.get_latest_filename(samples)
    assert utils.get_file_datetime(path) == utils.get_file_datetime(latest).replace(".json", ""), path
    # As lm-eval's metadata card and its script for Zeno read them.
    rows = load_dataset("json", data_files=path, split="train")
    for row in rows:
        assert row["arguments"]["gen_args_0"]["arg_0"] and row["target"] and row["filter"] == "none"
        assert row["filtered_resps"][0] == row["resps"][0][0]
    for metric in config["metric_list"]:
        name = metric["metric"]
        mean = sum(rows[name]) / len(rows)
        assert metric["aggregation"] == "mean" and abs(results["results"][task][name + ",none"] - mean) < 1e-9
        assert name in table, table
    assert task in table and len(rows) == results["n-samples"][task]["effective"] == results["results"][task]["sample_len"]
    found[task] = len(rows)
load_dataset("json", data_files=latest, split="train")
print(table, file=sys.stderr)
print(json.dumps(found))
