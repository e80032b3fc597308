"""Every task that can be found keeps the contract of outlast.task. A new task is tested here without being named."""

import json
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from outlast import task as tasks
from outlast.config.load import read_config, to_yaml
from outlast.data.loader import BatchPlan, Loader
from outlast.data.sampler import Drawn, occurrence_keys
from outlast.task import Call, Inputs, Predict, Train, Trained, select, topological

pytestmark = pytest.mark.parametrize("name", list(tasks.names()))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """{task name: (task, smoke configuration, {learner that it trains: examples of the synthetic set})}, when asked.

    Learners are tried with the configuration of the stages that they train.
    """
    known = {}

    def make(name):
        if name not in known:
            task = tasks.find(name)
            folder = tmp_path_factory.mktemp(name)
            task.synthetic(folder)
            config = task.presets["smoke"]()
            roots = {tasks.DATA: folder}
            stages = {stage.learner.name: stage for stage in task.stages(config) if isinstance(stage, Train)}
            examples = {key: stage.learner.examples(stage.config, roots) for key, stage in stages.items()}
            known[name] = (task, config, examples)
        return known[name]

    return make


def trainings(task, config, examples):
    """(learner, its stage's configuration, its examples) of every training; of those that differ in rows, the first."""
    stages = [stage for stage in task.stages(config) if isinstance(stage, Train)]
    first = {(stage.learner.name, stage.config.model_dump_json()): stage for stage in reversed(stages)}
    return [(stage.learner, stage.config, examples[stage.learner.name]) for stage in reversed(first.values())]


def taught(learner, config, examples, batch, stages):
    """The batch with what a teacher says of it, whose weights are those of untrained models."""
    if learner.teacher is None:
        return batch
    torch.manual_seed(1)
    trained = {}
    for stage in stages:
        module = stage.learner.model(stage.config, Inputs(examples.facts), stage.learner.rungs(stage.config)[0])
        trained[stage.name] = Trained(module.state_dict(), examples.facts)
    teacher = learner.teacher(config, Inputs(examples.facts), trained)
    if teacher is None:
        return batch
    with torch.no_grad():
        told = learner.teach(config, teacher.eval(), batch)
    assert not any(parameter.grad is not None for parameter in teacher.parameters())
    assert all(len(value) == len(batch["row"]) for value in told.values())
    return {**batch, **told}


def first_rows(learner, config, examples, count=6):
    samples = [learner.read(config, examples.root, row) for row in examples.table.head(count).to_dict("records")]
    return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}


def batch_of(learner, config, examples, rows, *, augmented=True):
    arrays = first_rows(learner, config, examples)
    columns = {key: examples.table[key].to_numpy() for key in examples.batch_columns}
    with Loader(
        get=lambda positions: {key: array[positions] for key, array in arrays.items()},
        columns=columns,
        finish=lambda batch, draws: learner.augment(config, batch, draws),
        draw=lambda epoch, keys: learner.draw(config, 0, epoch, keys),
        workers=0,
    ) as loader:
        plan = BatchPlan(1, 0, rows, occurrence_keys(rows))
        return next(iter(loader.batches([plan], augmented=augmented)))


def test_it_says_what_it_is_and_has_the_presets_that_people_expect(name):
    task = tasks.find(name)
    assert task.name == name
    assert tasks.names()[name] == task.about
    assert {"smoke", "cpu", "t4", "full"} <= set(task.presets)


def test_every_preset_is_valid_and_survives_being_written(name, tmp_path):
    task = tasks.find(name)
    for preset in task.presets.values():
        config = preset()
        (tmp_path / "config.yaml").write_text(to_yaml(config))
        assert read_config(task.config, tmp_path / "config.yaml") == config


def test_the_plan_can_be_ordered_and_delivers_a_stage_that_trains(name):
    task = tasks.find(name)
    for preset in task.presets.values():
        config = preset()
        ordered = topological(task.stages(config))
        trains = {stage.name for stage in ordered if isinstance(stage, Train)}
        assert set(task.deliver(config).models) <= trains
        assert all(set(stage.models) <= trains for stage in ordered if isinstance(stage, Predict))
        assert all(stage.makes for stage in ordered if isinstance(stage, Call))
        used = {stage.learner.name for stage in ordered if not isinstance(stage, Predict) and stage.learner}
        assert used <= {learner.name for learner in task.learners.values()}


def test_the_synthetic_set_is_marked_and_complete(name, made):
    task, config, examples = made(name)
    for item in examples.values():
        assert (item.root / "SYNTHETIC.txt").is_file()
        assert item.table["id"].is_unique
        assert item.table["hash"].str.fullmatch("[0-9a-f]{64}").all()
        json.dumps(item.facts)
    for stage in task.stages(config):
        if isinstance(stage, Train):
            table = examples[stage.learner.name].table
            assert len(select(table, stage.fit)) > len(select(table, stage.validate)) > 0
            assert not set(select(table, stage.fit)) & set(select(table, stage.validate))


def test_examples_are_the_same_every_time(name, made):
    task, config, examples = made(name)
    for learner, own, item in trainings(task, config, examples):
        again = learner.examples(own, {tasks.DATA: item.root})
        assert again.fingerprint == item.fingerprint
        assert again.table.equals(item.table)


def test_samples_are_read_the_same_every_time_in_the_type_of_the_cache(name, made):
    task, config, examples = made(name)
    for learner, own, item in trainings(task, config, examples):
        one, two = first_rows(learner, own, item), first_rows(learner, own, item)
        assert all(np.array_equal(one[key], two[key]) for key in one)
        json.dumps(learner.reads(own))


def test_the_order_is_a_function_of_seed_and_epoch(name, made):
    task, config, examples = made(name)
    for learner, own, item in trainings(task, config, examples):
        table = item.table.iloc[:50]
        drawn = [learner.sampler(own, table, seed, epoch) for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))]
        orders = [item.positions if isinstance(item, Drawn) else item for item in drawn]
        assert np.array_equal(orders[0], orders[1])
        assert not np.array_equal(orders[0], orders[2])
        assert not np.array_equal(orders[0], orders[3])
        assert all(order.dtype == np.int64 and order.min() >= 0 and order.max() < len(table) for order in orders)
        assert len({len(order) for order in orders}) == 1


def test_a_sample_does_not_depend_on_its_batch(name, made):
    task, config, examples = made(name)
    for learner, own, item in trainings(task, config, examples):
        together = batch_of(learner, own, item, np.array([0, 1, 2, 3, 4], dtype=np.int64))
        alone = batch_of(learner, own, item, np.array([3], dtype=np.int64))
        for key, value in alone.items():
            assert torch.equal(value[0], together[key][3]), key


def test_every_rung_takes_a_step_and_predicts_what_its_metric_scores(name, made):
    task, config, examples = made(name)
    stages = [stage for stage in task.stages(config) if isinstance(stage, Train)]
    for learner, own, item in trainings(task, config, examples):
        batch = batch_of(learner, own, item, np.arange(6, dtype=np.int64))
        batch["epochs"] = torch.tensor(0.0)
        batch = taught(learner, own, item, batch, stages)
        for rung in learner.rungs(own):
            torch.manual_seed(0)
            model = learner.model(own, Inputs(item.facts), rung)
            result = learner.step(own, model, batch)
            result["loss_sum"].backward()
            assert torch.isfinite(result["loss_sum"])
            assert float(result["weight"]) > 0
            assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
            with torch.no_grad():
                outputs = learner.predict(own, model.eval(), batch)
            assert all(len(value) == 6 for value in outputs.values())
            metric = learner.metric(own, item.facts)
            metric.update(outputs, batch)
            metrics = metric.compute()
            assert learner.score[0] in "+-"
            assert isinstance(metrics[learner.score[1:]], float)
            assert isinstance(learner.deploy(own, model), torch.nn.Module)


def test_what_is_delivered_is_told_with_its_weights(name, made):
    task, config, examples = made(name)
    delivery = task.deliver(config)
    stage = next(stage for stage in task.stages(config) if stage.name in delivery.models)
    facts = examples[stage.learner.name].facts
    sidecar = delivery.sidecar(stage.config, facts, stage.learner.rungs(stage.config)[0])
    assert isinstance(sidecar, Mapping)
    json.dumps(sidecar)
    labelled = delivery.labelled(stage.config, examples[stage.learner.name].root, facts)
    assert len(labelled.table) > 0
