"""Captured steps: equal to steps kernel by kernel, shared by trials, nothing stale, nothing of the capture left behind.

On the CPU a recorder stands in for CUDA's: ``Rerun`` calls the function again, ``traced`` repeats the very operations
that were recorded, with every Python number of that moment, as a CUDA graph does. What only a GPU can show is at the
end.
"""

import gc
import itertools
import weakref

import pytest
import torch
from test_trainer import assert_equal_states, blobs, settings, untimed
from torch.fx.experimental.proxy_tensor import make_fx

from xray_opt.adapter import attach, set_mode, trainable_state
from xray_opt.adapter.folded_conv import FoldedConv
from xray_opt.backbone import Base, random_base
from xray_opt.cache import Images, open_images
from xray_opt.config import Config, DataConfig, Workspace, flatten, override
from xray_opt.dataset import prepare
from xray_opt.errors import ConfigError
from xray_opt.loss import FocalLoss
from xray_opt.trainer import Trainer, graphed
from xray_opt.trainer import trainer as trainer_room
from xray_opt.trainer.choice import same_kernels
from xray_opt.trainer.eager import Eager
from xray_opt.trainer.graphed import Graphed
from xray_opt.trainer.step import Stepper
from xray_opt.trainer.trainer import make_optimizer

AGAINST_SHORTCUTS = {
    "augment_border": 0.1,
    "augment_recompress": 0.5,
    "augment_gamma": 0.3,
    "augment_brightness": 0.1,
    "augment_equalise": 0.3,
}
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")


@pytest.fixture(scope="module")
def base() -> Base:
    return random_base(0)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Images:
    root = blobs(tmp_path_factory.mktemp("films"), patients=16)
    data = DataConfig(root=str(root), train_fraction=0.5, val_fraction=0.25, test_fraction=0.25)
    return open_images(prepare(data), 32, Workspace(tmp_path_factory.mktemp("home")))


@pytest.fixture(autouse=True)
def one_gradient(monkeypatch):
    """The gradient by way of the whole weight, as on a GPU: a CPU may take another way, with other rounding."""
    original, threads = FoldedConv.parts, torch.get_num_threads()
    monkeypatch.setattr(FoldedConv, "parts", lambda self, dtype: original(self, dtype)._replace(sparing=False))
    torch.set_num_threads(1)  # equal to the bit means: on equally many threads
    graphed.release()
    yield
    graphed.release()
    torch.set_num_threads(threads)


class Rerun:
    """Calls the function again; counts what it recorded, and can be out of memory above so many films."""

    def __init__(self, most: int = 1000) -> None:
        self.most = most
        self.steps = 0

    def __call__(self, function, device):
        step = function.__self__ if getattr(function, "__name__", "") == "_run" else None
        for _ in range(graphed.WARM_UP):
            self._run(function, step)
        self.steps += step is not None
        return lambda: self._run(function, step)

    def _run(self, function, step) -> None:
        function()
        if step is not None and len(step._images) > self.most:
            raise torch.OutOfMemoryError("simulated")


def traced(function, device):
    """The operations of one call, repeated on the tensors that they were recorded with."""
    for _ in range(graphed.WARM_UP):
        function()

    def recorded(unused):
        function()
        return unused

    graph = make_fx(recorded)(torch.zeros(()))

    def replay() -> None:
        with torch.no_grad():
            graph(torch.zeros(()))

    return replay


class Training:
    """One network in training by one way, fed with batches of the same random numbers."""

    def __init__(self, base, config, how=None, micro=6, say=print) -> None:
        self.network = attach(base, config).to(memory_format=torch.channels_last)
        self.optimizer = make_optimizer(self.network, config.optimizer)
        self.generator = torch.Generator().manual_seed(3)
        loss, kind = FocalLoss(config.loss.alpha, config.loss.gamma, config.loss.label_smoothing), torch.float32
        if config.training.precision == "bf16":
            kind = torch.bfloat16
        same = same_kernels(config, base.sha256)
        gradients = Graphed(self.network, loss, kind, same, how=how) if how else Eager(self.network, loss, kind)
        self.stepper = Stepper(gradients, self.optimizer, micro, config.model.batch_norm == "train", say)

    def step(self, films: int) -> float:
        set_mode(self.network, True)
        batch = torch.randn(films, 3, 32, 32, generator=self.generator).contiguous(memory_format=torch.channels_last)
        return float(self.stepper.step(batch, (torch.arange(films) % 2).float()))


def course(training: Training, sizes=(6, 6, 4, 6), seed: int = 5) -> list[float]:
    """Losses of some steps; global random numbers as the trainer has them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        losses = [training.step(films) for films in sizes]
        return [*losses, float(torch.rand(()))]  # so many numbers were drawn


VARIANTS = [
    {},
    {"model_batch_norm": "train"},
    {"lora_stages": "late", "training_precision": "bf16"},
    {"model_strategy": "linear"},
    {"lora_dropout": 0.2},
    {"model_strategy": "full"},
    {"model_strategy": "full", "model_batch_norm": "train"},
]
WHICH = pytest.mark.parametrize("changed", VARIANTS, ids=lambda changed: ",".join(map(str, changed.values())) or "lora")


@WHICH
def test_steps_equal_those_kernel_by_kernel_to_the_bit(base, changed):
    """Dropout and stochastic depth draw, statistics move, a short batch comes between: weights, losses, draws."""
    config = settings(**changed)
    recorder = Rerun()
    captured, eager = Training(base, config, recorder), Training(base, config)
    assert course(captured) == course(eager)
    assert_equal_states(captured.network, eager.network)
    assert recorder.steps == 1
    assert not torch.equal(
        torch.cat([v.flatten() for v in trainable_state(eager.network).values()]), start(base, config)
    )


def start(base, config):
    return torch.cat([value.flatten() for value in trainable_state(attach(base, config)).values()])


# Where norms train on six small films they magnify any other rounding, and recorded operations round otherwise.
FROZEN = [changed for changed in VARIANTS if changed.get("model_batch_norm") != "train"]


@pytest.mark.long
@pytest.mark.parametrize("changed", FROZEN, ids=str)
def test_recorded_operations_alone_give_the_steps(base, changed):
    """As in a CUDA graph, a Python number that changes between steps would be the one of the capture for ever."""
    first = settings(**changed)
    captured, eager = (Training(base, first, how, micro=3) for how in (traced, None))
    losses = [course(training, (6, 5)) for training in (captured, eager)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    other = override(first, {"loss.alpha": 0.8, "loss.gamma": 0.5, "optimizer.learning_rate": 1e-3})
    other = override(other, {"loss.label_smoothing": 0.2})
    if not first.lora.dropout:
        other = override(other, {"lora.rank": 5, "lora.alpha": 3.0})
    captured, eager = (Training(base, other, how, micro=3) for how in (traced, None))
    before = next(iter(graphed._KEPT.values()))
    losses = [course(training, (6, 5), seed=6) for training in (captured, eager)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert next(iter(graphed._KEPT.values())) is before
    near(captured.network, eager.network)


def near(one, other, rtol=1e-3, atol=2e-5) -> None:
    wanted = trainable_state(other)
    for name, value in trainable_state(one).items():
        torch.testing.assert_close(
            value, wanted[name], rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_trials_of_all_ranks_alphas_and_losses_share_one_capture_even_in_turns(base):
    recorder = Rerun()
    changes = [
        {"lora_rank": 4, "lora_alpha": 8.0},
        {"lora_rank": 8, "loss_alpha": 0.9, "loss_label_smoothing": 0.1},
        {"lora_rank": 16, "loss_gamma": 0.0, "training_seed": 3},
        {"lora_rank": 32, "lora_alpha": 64.0, "optimizer_learning_rate": 1e-2},
    ]
    configs = [settings(**change) for change in changes]
    captured, eager = ([Training(base, config, how) for config in configs] for how in (recorder, None))
    for trials in (captured, eager):
        for films in (6, 6, 2):
            for number, trial in enumerate(trials):
                course(trial, (films,), seed=number)
    assert recorder.steps == 1
    assert len({tuple(start(base, config).shape) for config in configs}) == 4
    for one, other in zip(captured, eager, strict=True):
        assert_equal_states(one.network, other.network)


@pytest.mark.parametrize(
    "changed",
    [{"lora_stages": "late"}, {"model_dropout": 0.5}, {"model_stochastic_depth": 0.0}, {"model_batch_norm": "train"}],
    ids=str,
)
def test_what_the_kernels_depend_on_is_captured_anew_and_the_old_step_goes(base, changed):
    recorder = Rerun()
    first = Training(base, settings(), recorder)
    course(first)
    old = weakref.ref(next(iter(graphed._KEPT.values())))
    del first
    config = settings(**changed)
    captured, eager = Training(base, config, recorder), Training(base, config)
    assert course(captured) == course(eager)
    assert recorder.steps == 2
    assert len(graphed._KEPT) == 1
    gc.collect()
    assert old() is None


def test_every_setting_is_known_to_change_the_kernels_or_not():
    """A new setting has to be put somewhere: a captured step that does not know of it would be a stale one."""
    outside = ("data.", "image.", "loss.", "optimizer.", "scheduler.", "augment.", "tracking.")
    known = {"epochs", "batch_size", "micro_batch", "early_stopping_patience", "seed", "device", "precision"}
    known |= {"cuda_graphs", "compile"}
    names = [name for name in flatten(Config()) if not name.startswith(outside)]
    assert {name.partition(".")[0] for name in names} == {"model", "lora", "training"}
    assert {name.removeprefix("training.") for name in names if name.startswith("training.")} == known
    values = {"model.base": "random", "model.base_seed": 1, "model.strategy": "full", "model.batch_norm": "train"}
    values |= {"model.dropout": 0.1, "model.stochastic_depth": 0.1, "lora.dropout": 0.1, "lora.stages": "late"}
    values |= {"lora.targets": "ungrouped", "training.compile": True}
    still = {"lora.rank", "lora.alpha", "model.base_overlap"}
    plain = same_kernels(Config(), "a")
    assert plain != same_kernels(Config(), "b")
    for name in names:
        if name in values:
            assert same_kernels(override(Config(), {name: values[name]}), "a") != plain, name
    assert {name for name in names if not name.startswith("training.")} - set(values) == still
    for rank in ({"lora.rank": 3}, {"lora.alpha": 3.0}):
        assert same_kernels(override(Config(), rank), "a") == plain
        dropping = {"lora.dropout": 0.1}
        assert same_kernels(override(Config(), dropping | rank), "a") != same_kernels(override(Config(), dropping), "a")


@pytest.mark.parametrize("batch_norm", ["frozen", "train"])
def test_gradients_of_parts_add_up_whether_replayed_or_not(base, batch_norm):
    """Two replays of three films, and one part of two kernel by kernel."""
    found = []
    for how in (Rerun(), None):
        training = Training(base, settings(model_batch_norm=batch_norm), how)
        set_mode(training.network, True)
        gradients, generator = training.stepper._gradients, torch.Generator().manual_seed(0)
        for _ in range(2):  # begun again after it broke off
            training.network.zero_grad()
            gradients.begin()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)
                for films in (3, 2, 3):
                    images = torch.randn(films, 3, 32, 32, generator=generator)
                    gradients.part(images, torch.ones(films), films / 8)
        gradients.end()
        found.append(
            {name: weight.grad for name, weight in training.network.named_parameters() if weight.requires_grad}
        )
    captured, eager = found
    assert captured.keys() == eager.keys()
    for name, gradient in eager.items():
        assert (captured[name] - gradient).norm() <= 1e-4 * gradient.norm(), name
    assert sum(bool(gradient.abs().max() > 0) for gradient in eager.values()) > 70


def test_micro_batches_take_the_course_they_take_kernel_by_kernel(base):
    """Of 3: 6 films are two replays, 3 are one of the whole weight, 5 are one and one kernel by kernel."""
    captured, eager = (Training(base, settings(), how, micro=3) for how in (Rerun(), None))
    assert course(captured, (6, 3, 5, 6)) == pytest.approx(course(eager, (6, 3, 5, 6)), rel=1e-5)
    near(captured.network, eager.network)


def test_a_changed_learning_rate_counts_from_the_next_step_on(base):
    captured, eager = (Training(base, settings(), how) for how in (Rerun(), None))
    for training in (captured, eager):
        course(training, (6, 6))
        for group in training.optimizer.param_groups:
            group["lr"] *= 0.1
        course(training, (6, 6))
    assert_equal_states(captured.network, eager.network)


def test_addresses_stay_what_they_were(base):
    training = Training(base, settings(model_batch_norm="train"), Rerun())
    course(training, (6,))
    (captured,) = graphed._KEPT.values()
    trial = training.stepper._gradients._trial

    def addresses():
        kept = [*captured._leaves, *captured.gradients, *itertools.chain(*captured.statistics), *trial._found]
        kept += [
            captured._images,
            captured._targets,
            captured._share,
            captured._alpha,
            captured._gamma,
            captured._smoothing,
            captured._total,
        ]
        kept += [*captured._twin.parameters(), *captured._twin.buffers(), *trial._halves, *trial._own]
        return [tensor.data_ptr() for tensor in kept]

    before = addresses()
    course(training, (6, 4, 6))
    set_mode(training.network, False)
    training.network(torch.randn(2, 3, 32, 32))
    course(training, (6,))
    assert addresses() == before


def test_capturing_leaves_weights_statistics_and_random_numbers_alone(base):
    training, batch = Training(base, settings(model_batch_norm="train"), Rerun()), torch.randn(4, 3, 32, 32)
    set_mode(training.network, True)
    before, state = trainable_state(training.network), torch.get_rng_state()
    training.stepper._gradients._join(batch)
    after = trainable_state(training.network)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(weight.grad is None for weight in training.network.parameters())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("batch_norm", ["frozen", "train"])
def test_memory_running_out_in_a_capture_equals_a_smaller_micro_batch(base, batch_norm):
    config, lines = settings(model_batch_norm=batch_norm), []
    halved = Training(base, config, Rerun(most=3), say=lines.append)
    asked = Training(base, config, Rerun(), micro=3)
    assert course(halved) == course(asked)
    assert halved.stepper.micro_batch == 3
    assert lines == ["memory of cpu ran out: going on with 3 films at a time, same batch"]
    assert_equal_states(halved.network, asked.network)


def test_memory_running_out_in_a_replay_lets_go_of_the_captured_step(base):
    recorder = Rerun()
    halved, asked = Training(base, settings(), recorder), Training(base, settings(), Rerun())
    course(halved, (6, 6)), course(asked, (6, 6))
    old = weakref.ref(next(iter(graphed._KEPT.values())))
    recorder.most, asked.stepper.micro_batch = 3, 3
    asked.stepper._gradients.restart()
    assert course(halved, (6, 4)) == course(asked, (6, 4))
    assert recorder.steps == 2
    assert_equal_states(halved.network, asked.network)
    gc.collect()
    assert old() is None


def test_many_trials_leave_no_more_behind_than_two(base):
    recorder, counts = Rerun(), []
    for rank in (2, 4, 8, 3, 5, 7):
        training = Training(base, settings(lora_rank=rank), recorder)
        course(training, (6, 4))
        del training
        gc.collect()
        counts.append(sum(torch.is_tensor(thing) for thing in gc.get_objects()))
    assert counts[1] == counts[-1]
    assert recorder.steps == 1


def with_graphs(monkeypatch, recorder) -> None:
    """Trainers capture their steps, on the CPU too."""

    def choose(network, config, precision, device, sha256, say):
        loss = FocalLoss(config.loss.alpha, config.loss.gamma)
        return Graphed(network, loss, precision, same_kernels(config, sha256), how=recorder)

    monkeypatch.setattr(trainer_room, "choose", choose)


@pytest.mark.parametrize("batch_norm", ["frozen", "train"])
def test_whole_trainings_equal_and_a_resumed_one_too(base, images, tmp_path, monkeypatch, batch_norm):
    """Sixteen films in batches of six, a falling rate, validation between the epochs."""
    config = settings(
        model_batch_norm=batch_norm, training_epochs=6, scheduler_patience=0, optimizer_learning_rate=1e-4
    )
    eager = Trainer(config, images, base)
    list(eager.epochs())
    assert len({epoch.learning_rate for epoch in eager.history}) > 1
    recorder = Rerun()
    with_graphs(monkeypatch, recorder)
    path = tmp_path / "trial.pt"
    next(Trainer(config, images, base, path).epochs())
    resumed = Trainer(config, images, base, path)
    list(resumed.epochs())
    assert len(resumed.resumed) == 1
    assert untimed(resumed.history) == untimed(eager.history)
    assert_equal_states(resumed.network, eager.network)
    assert_equal_states(resumed.best(), eager.best())
    assert recorder.steps == 1


def test_a_checkpoint_may_be_resumed_with_or_without_graphs(base, images, tmp_path):
    config, path, lines = settings(training_epochs=2), tmp_path / "trial.pt", []
    next(Trainer(config, images, base, path).epochs())
    resumed = Trainer(override(config, {"training.cuda_graphs": True}), images, base, path, lines.append)
    whole = Trainer(config, images, base)
    list(resumed.epochs()), list(whole.epochs())
    assert lines[0] == "training.cuda_graphs: cpu has no CUDA graphs; training goes on without, with equal results"
    assert untimed(resumed.history) == untimed(whole.history)


def test_only_memory_is_taken_for_memory():
    """A capture ends with whatever leaving it raised; what it broke off with stands behind."""
    memory, later = torch.OutOfMemoryError("out"), RuntimeError("operation failed due to a previous error")
    later.__context__ = memory
    assert graphed._shortage(later) is memory
    assert graphed._shortage(memory) is memory
    assert graphed._shortage(RuntimeError("other")) is None


@pytest.fixture
def gpu():
    device = torch.device("cuda", torch.cuda.current_device())
    gc.collect()
    torch.cuda.empty_cache()
    return device


def on_gpu(**changed):
    return settings(training_device="cuda", training_precision="auto", **changed)


@CUDA
@pytest.mark.parametrize("changed", VARIANTS[1:3] + VARIANTS[:1] + VARIANTS[4:5], ids=str)
def test_on_a_gpu_two_epochs_take_the_course_without_graphs(base, images, gpu, changed):
    config = on_gpu(**{"training_epochs": 2} | changed)
    if changed.get("training_precision"):
        config = override(config, {"training.precision": "bf16"})
    found = []
    for graphs in (False, True):
        trainer = Trainer(override(config, {"training.cuda_graphs": graphs}), images, base)
        found.append([(epoch.train_loss, epoch.val_loss) for epoch in trainer.epochs()])
    assert len(graphed._KEPT) == 1
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, rel=0.05)


@CUDA
def test_on_a_gpu_all_ranks_share_one_capture_and_memory_stays_flat(base, images, gpu, monkeypatch):
    captures = []
    original = graphed.Captured.record
    monkeypatch.setattr(graphed.Captured, "record", lambda self, how: (captures.append(1), original(self, how)))
    allocated = []
    for rank in (4, 8, 16, 32, 4, 8, 16, 32):
        trainer = Trainer(on_gpu(lora_rank=rank, training_epochs=1, training_cuda_graphs=True), images, base)
        list(trainer.epochs())
        del trainer
        gc.collect()
        torch.cuda.empty_cache()
        allocated.append((torch.cuda.memory_allocated(gpu), torch.cuda.memory_reserved(gpu)))
    assert len(captures) == 1
    assert allocated[-1][0] <= allocated[1][0] + 2**20
    assert allocated[-1][1] <= allocated[1][1] + 2**25


@CUDA
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("against", [{}, AGAINST_SHORTCUTS], ids=["plain", "against shortcuts"])
def test_on_a_gpu_no_step_waits_for_the_device(base, images, gpu, graphs, against):
    trainer = Trainer(on_gpu(training_cuda_graphs=graphs, **against), images, base)
    trainer._train(1)  # what waits is what is made once
    generator, order = torch.Generator().manual_seed(0), [list(range(6)), list(range(6, 12))]
    batches = trainer_room.feed(images.train, gpu).batches([torch.tensor(part).numpy() for part in order])
    pixels, targets = next(batches)
    losses = []
    torch.cuda.set_sync_debug_mode("error")  # what waits raises
    try:
        for _ in range(2):
            losses.append(trainer._stepper.step(trainer._augment(pixels, generator), targets))
            pixels, targets = next(batches, (pixels, targets))
        with pytest.raises(RuntimeError, match="synchroniz"):
            float(losses[0])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(torch.stack(losses)).tolist() == [True, True]


@CUDA
def test_on_a_gpu_what_cannot_be_captured_is_one_clear_line(gpu):
    value = torch.ones((), device=gpu)
    with pytest.raises(ConfigError, match=r"set training\.cuda_graphs=false") as caught:
        graphed.record(lambda: value.fill_(float(value)), gpu)
    assert "\n" not in str(caught.value)
    assert float(torch.ones(2, device=gpu).sum()) == 2
