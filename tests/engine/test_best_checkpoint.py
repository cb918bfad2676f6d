"""The best checkpoint, the early stop, and averaged weights, with results that are given."""

import math

import pytest
import small_model
import torch
from detectron2.evaluation.testing import flatten_results_dict

from contrastmask import Predictor
from contrastmask.engine import Trainer, load_config
from contrastmask.engine.best_checkpoint import check_best_metric

METRIC = "segm-base/AP"
LONG = 9  # iterations without an early stop


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("best_data")
    small_model.write_data(folder, num_images=2)
    return [*small_model.options(folder, "best_data"), "SOLVER.IMS_PER_BATCH", "2"]


@pytest.fixture
def make_trainer(data, tmp_path):
    """Function: results of its evaluations, overrides -> trainer whose steps add 1 to a weight."""

    def make(results, *opts):
        opts = [*data, "OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", str(LONG), *opts]
        trainer = Trainer(load_config(small_model.CONFIG_FILE, opts))
        trainer.evaluated = []
        values = iter(results)

        def step():
            weight(trainer.model).data += 1

        def test(cfg, model):
            trainer.evaluated.append((trainer.iter, weight(model).item()))
            return {"segm-base": {"AP": next(values)}}

        trainer._trainer.run_step, trainer.test = step, test
        weight(trainer.model).data.zero_()
        return trainer

    return make


def weight(model):
    return model.proposal_generator.rpn_head.objectness_logits.bias[:1]


def saved(folder, name):
    """The weight in a checkpoint, and all else that it has."""
    content = torch.load(folder / name, weights_only=True)
    key = "proposal_generator.rpn_head.objectness_logits.bias"
    return content["model"][key][0].item(), content


BEST = ["TEST.BEST_METRIC", METRIC, "TEST.EVAL_PERIOD", "1", "SOLVER.CHECKPOINT_PERIOD", "2"]


def test_best_of_all_evaluations(make_trainer, tmp_path):
    values = [math.nan, 5, 7, 6, 7, 4, 3, 2, 6.5]
    trainer = make_trainer(values, *BEST)
    trainer.train()
    assert [i for i, _ in trainer.evaluated] == list(range(LONG - 1)) + [LONG]
    value, content = saved(tmp_path, "model_best.pth")
    assert value == 3 and content["iteration"] == 2
    assert "optimizer" not in content and "trainer" not in content
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert Predictor(str(tmp_path / "model_best.pth")).class_names


# NaN counts neither as better nor as worse.
STOPPING = [5, 7, math.nan, 6, 6.5, 6.8]


def test_early_stop(make_trainer, tmp_path):
    opts = [*BEST, "TEST.EARLY_STOP_PATIENCE", "3"]
    trainer = make_trainer([*STOPPING, 6.8], *opts)
    trainer.train()
    assert [i for i, _ in trainer.evaluated] == [0, 1, 2, 3, 4, 5, 6]  # the last one at the end
    assert trainer.iter == trainer.max_iter == 6
    assert saved(tmp_path, "model_best.pth")[0] == 2
    assert saved(tmp_path, "model_final.pth")[0] == 6
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"

    resumed = make_trainer([6.8], *opts)
    resumed.resume_or_load(resume=True)
    resumed.train()
    assert resumed.evaluated == [(6, 6)], "it has not remained at its end"
    longer = make_trainer([9, 9, 9], *BEST, "TEST.EARLY_STOP_PATIENCE", "4")
    longer.resume_or_load(resume=True)
    longer.train()
    assert [i for i, _ in longer.evaluated] == [6, 7, LONG]
    assert saved(tmp_path, "model_best.pth")[0] == 7


@pytest.mark.parametrize("last, at_start", [("model_0000001.pth", 2), ("model_0000003.pth", 4)])
def test_a_resumed_training_remembers(make_trainer, tmp_path, last, at_start):
    """As after a kill before the next checkpoint; the best file is from then or later."""
    opts = [*BEST, "TEST.EARLY_STOP_PATIENCE", "3"]
    make_trainer([*STOPPING, 0], *opts).train()
    (tmp_path / "last_checkpoint").write_text(last)
    resumed = make_trainer([*STOPPING[at_start:], 0], *opts)
    resumed.resume_or_load(resume=True)
    resumed.train()
    assert [i for i, _ in resumed.evaluated] == list(range(at_start, 7))
    assert saved(tmp_path, "model_best.pth")[0] == 2


def test_another_metric_begins_anew(make_trainer, tmp_path):
    make_trainer([50, 60], *BEST, "SOLVER.MAX_ITER", "2").train()
    other = make_trainer([3, 4], *BEST, "SOLVER.MAX_ITER", "4", "TEST.BEST_METRIC", "bbox/AP")
    test = other.test
    other.test = lambda cfg, model: {"bbox": test(cfg, model)["segm-base"]}
    other.resume_or_load(resume=True)
    other.train()
    assert saved(tmp_path, "model_best.pth")[0] == 4


def test_names_of_metrics(data):
    """What can be chosen is what evaluation gives; here novel classes have no masks."""
    cfg = load_config(small_model.CONFIG_FILE, data)
    model = Trainer.build_model(cfg)
    found = flatten_results_dict(Trainer.test(cfg, model))
    names = Trainer.build_evaluator(cfg, cfg.DATASETS.TEST[0]).metric_names()
    assert len(set(names)) == len(names) and set(names) <= set(found)
    assert {name for name, value in found.items() if not math.isnan(value)} <= set(names)
    of_sizes = {x for x in names if x.endswith(("/APs", "/APm", "/APl"))}
    assert all(not math.isnan(found[x]) for x in set(names) - of_sizes)
    assert {"bbox-novel/AP", "segm/AP", "gt-box-mask-base/IoU", "segm-filled-box/AP"} <= set(names)
    assert not {"segm-novel/AP", "gt-box-mask-novel/IoU", "segm-harmonic/AP"} & set(names)


@pytest.mark.parametrize(
    "opts, message",
    [
        (["TEST.BEST_METRIC", "segm-novel/AP"], "'segm-novel/AP'.*best_data.*segm-base/AP50"),
        (["TEST.BEST_METRIC", "segm-bose/AP"], "did you mean segm-base/AP\\?"),
        (["TEST.BEST_METRIC", "segm/AP", "MODEL.MASK_ON", "False"], "'segm/AP'.*bbox-novel/AP"),
        (["TEST.EARLY_STOP_PATIENCE", "3"], "TEST.BEST_METRIC"),
        (["TEST.EARLY_STOP_PATIENCE", "3", "TEST.BEST_METRIC", METRIC], "TEST.EVAL_PERIOD"),
    ],
)
def test_errors_before_training(data, opts, message):
    cfg = load_config(small_model.CONFIG_FILE, [*data, *opts])
    with pytest.raises(ValueError, match=message):
        Trainer(cfg)


def test_several_datasets(data):
    """The name of one belongs to the metric."""
    files = data[data.index("DATASETS.COCO_FORMAT") + 1]
    both = files[:-1] + ", " + files[1:].replace("best_data'", "second_data'", 1)
    opts = ["DATASETS.COCO_FORMAT", both, "DATASETS.TEST", "('best_data', 'second_data')"]
    cfg = load_config(small_model.CONFIG_FILE, [*data, *opts, "TEST.BEST_METRIC", "segm/AP"])
    with pytest.raises(ValueError, match="second_data/segm/AP,"):
        check_best_metric(cfg, Trainer.build_evaluator)
    cfg.defrost()
    cfg.TEST.BEST_METRIC = "second_data/segm/AP"
    check_best_metric(cfg, Trainer.build_evaluator)


def test_average_is_evaluated_and_saved(make_trainer, tmp_path):
    """Its weight is computed here from 0, 1, 2, ... by hand."""
    opts = [*BEST, "SOLVER.EMA_DECAY", "0.25"]
    trainer = make_trainer([1, 2, 3, 4, 8, 7, 6, 5, 4], *opts)
    trainer.train()
    average, expected = 0.0, []
    for n, value in enumerate(range(1, LONG + 1), start=1):
        decay = min(0.25, (n + 1) / (n + 10))
        average = decay * average + (1 - decay) * value
        expected.append(average)
    assert decay == 0.25 and expected[0] == pytest.approx(9 / 11)
    assert [x for _, x in trainer.evaluated] == pytest.approx(expected)
    assert saved(tmp_path, "model_best.pth")[0] == pytest.approx(expected[4])
    assert saved(tmp_path, "model_final.pth")[0] == LONG
    assert saved(tmp_path, "model_final_ema.pth")[0] == pytest.approx(expected[-1])
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    predictor = Predictor(str(tmp_path / "model_final_ema.pth"))
    assert weight(predictor.model).item() == pytest.approx(expected[-1])

    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
    resumed = make_trainer([0] * 9, *opts)
    resumed.resume_or_load(resume=True)
    resumed.train()
    assert resumed.evaluated == trainer.evaluated[4:]
