"""Several processes: norms that share their statistics, wrappers that follow a thaw, and one result in all of them."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta

import pytest
import starts
import torch
from conftest import ROOT
from safetensors.torch import load_file
from test_fit import CLASSES, Squares, network, place, train
from torch import nn

from lib.models import ARCHITECTURES, build, checkpoint
from lib.run import meeting, runtime
from lib.training.fit import Fit
from lib.training.stepper import all_sum, share_norms

TINY = "tu-test_efficientnet"
UNET = {"decoder": "unet", "decoder_channels": [16, 16, 8, 8], "upsample_logits": 2}
NETWORKS = {
    "segmentation": {"encoder": TINY, **UNET, "boundary": True},
    "siamese": {"encoder": TINY, "images": 2, **UNET},
    "unet": {"encoder": "none"},
    "attention_unet": {"encoder": "none"},
    "hybrid": {"encoder": TINY},
    "maskformer": {"encoder": TINY},
    "classifier": {"encoder": TINY},
}
"""One small network of each architecture."""
LARGE = {
    "dpn92": {"architecture": "siamese", "encoder": "tu-dpn92", "images": 2, "decoder": "unet2020"},
    "densenet161": {"architecture": "siamese", "encoder": "tu-densenet161", "images": 2, "decoder": "unet2020",
                    "bottleneck": "post"},
    "efficientnet-lite0": {"architecture": "siamese", "encoder": "tu-tf_efficientnet_lite0", "images": 2, **UNET},
    "upernet": {"architecture": "segmentation", "encoder": "tu-resnet18", "decoder": "upernet", "aux_head": True},
    "se_resnext50": {"architecture": "segmentation", "encoder": "tu-seresnext50_32x4d", "decoder": "unet2020"},
    "smp's own encoder": {"architecture": "segmentation", "encoder": "efficientnet-b0", **UNET},
}  # fmt: skip


def converts_to_the_same(description: dict) -> None:
    """Build a network, move its statistics off their start, and compare it with the converted one."""
    torch.manual_seed(0)
    plain, twin = (build(**{"classes": 3, "images": 1, **description}) for _ in range(2))
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (2, 3 * description.get("images", 1), 64, 64), dtype=torch.uint8, generator=generator)
    with torch.no_grad():
        plain.train()(image)
        twin.load_state_dict(plain.state_dict())
        shared = share_norms(twin).eval()
        expected, got = plain.eval()(image), shared(image)
    norms = [m for m in plain.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms and sum(isinstance(m, nn.SyncBatchNorm) for m in shared.modules()) == len(norms)
    assert shared.state_dict().keys() == plain.state_dict().keys()
    assert got.equal(expected)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_shared_norms_change_no_output(architecture):
    converts_to_the_same({"architecture": architecture, **NETWORKS[architecture]})


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_shared_norms_change_no_output_of_a_large_encoder(name):
    converts_to_the_same(LARGE[name])


def test_a_network_trained_with_shared_norms_is_the_one_that_is_loaded(tmp_path):
    """What is validated in training is what stage 04 predicts with: the same logits from the saved weights."""
    x, seen = Squares()[0]["image"][None], []

    def validate(net):
        with torch.no_grad():
            seen.append(net.eval()(x))
        return {"select": float(len(seen))}

    net = share_norms(network())
    assert any(isinstance(module, nn.SyncBatchNorm) for module in net.modules())
    Fit(net, CLASSES, Squares(), validate, train(epochs=2, ema=0.9), place(tmp_path)).run()
    plain = network()
    plain.load_state_dict(checkpoint.read_weights(tmp_path), strict=True)
    with torch.no_grad():
        assert plain.to(memory_format=torch.channels_last).eval()(x).equal(seen[-1])


def test_one_process_shares_with_nobody():
    tensor = torch.ones(2)
    runtime.share([tensor])
    assert tensor.equal(torch.ones(2)) and runtime.agree({"a": 1}) == {"a": 1}


def test_sums_over_processes_are_added_in_the_backward_pass_too(monkeypatch, recwarn):
    """Two processes that hold the same; torch's own function warns that it will go."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.mul_(2))
    own = torch.tensor([1.0, 2.0], requires_grad=True)
    total = all_sum(own)
    (total * torch.tensor([3.0, 5.0])).sum().backward()
    assert total.tolist() == [2, 4] and own.tolist() == [1, 2] and own.grad.tolist() == [6, 10]
    assert not list(recwarn)


def test_the_state_stays_until_all_processes_have_read_it(tmp_path, monkeypatch):
    """Killed between the last save and the seal, a run has nothing left to do; its state goes with the seal."""
    done = Fit(network(), CLASSES, Squares(), lambda _: {"select": 0.0}, train(epochs=1), place(tmp_path))
    done.epoch = 1
    done._save()
    waited = []
    monkeypatch.setattr(runtime, "barrier", lambda: waited.append((tmp_path / "last.pt").exists()))
    Fit(network(), CLASSES, Squares(), lambda _: {"select": 0.0}, train(epochs=1), place(tmp_path)).run()
    assert waited == [True] and (tmp_path / "last.pt").exists()


SCRIPT = """
import hashlib, json, os, signal, sys
from pathlib import Path
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import torch
from test_fit import CLASSES, Squares, network, place, train
from lib.run import runtime
from lib.training.fit import Fit

folder, options, section = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
seen = []

def validate(net):
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    seen.append(digest.hexdigest())
    if os.environ.get("PRESSED") == str(runtime.rank()) and len(seen) == 1:
        os.kill(os.getpid(), signal.SIGINT)
    lost = folder / "lost"
    if os.environ.get("PRESSED") == "killed" and runtime.rank() == 1 and len(seen) == 2 and not lost.exists():
        lost.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get("PRESSED") == "launcher" and len(seen) == 1 and runtime.rank() == 0:
        os.kill(os.getppid(), signal.SIGTERM)
    return {{"select": float(len(seen)) + 10 * runtime.rank()}}

with runtime.process_group():
    fit = Fit(network(**options), CLASSES, Squares(), validate, train(**section), place(folder))
    try:
        scores = fit.run()
    except KeyboardInterrupt:
        scores = [fit.epoch, fit.step]
    runtime.barrier()
(folder / f"rank{{runtime.rank()}}.json").write_text(json.dumps([seen, scores]))
"""


def in_processes(folder, count, options, section, pressed=""):
    """Train in so many processes. Return the lines of the log, the saved weights and what each rank validated.

    pressed: the rank that gets a Ctrl-C in its first validation; or launcher: torchrun gets a SIGTERM then.
    """
    folder.mkdir(exist_ok=True)
    script = folder / "run.py"
    script.write_text(SCRIPT.format(root=str(ROOT)))
    arguments = [str(script), str(folder), json.dumps(options), json.dumps(section)]
    if pressed == "launcher":
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        subprocess.run([*launcher, *arguments], env={**os.environ, "PRESSED": pressed}, cwd=ROOT)
    else:
        assert starts.ranks(count, *arguments, PRESSED=pressed) == [0] * count
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(count)]
    return log, load_file(folder / "best.safetensors"), ranks


@pytest.mark.slow
def test_the_norms_of_averaged_weights_are_those_of_one_process(tmp_path):
    """The steps are too small to move a weight: gloo shares no norms, so weights that move would differ."""
    section = {"epochs": 3, "swa_from": 1, "swa_batches": 2, "validate_every": 1, "optimizer": {"lr": 1e-25}}
    _, one, _ = in_processes(tmp_path / "one", 1, {}, section)
    _, two, ranks = in_processes(tmp_path / "two", 2, {}, section)
    assert ranks[0] == ranks[1] and len(ranks[0][0]) == 3, "all validate, hold the same weights and get rank 0's scores"
    for name, tensor in one.items():
        assert torch.allclose(two[name], tensor, rtol=1e-6, atol=1e-20), name
    start = network().state_dict()
    assert any(not one[name].allclose(start[name]) for name in one if name.endswith("running_var"))


@pytest.mark.slow
def test_processes_follow_one_through_a_thaw_and_hold_the_same_average(tmp_path):
    section = {"epochs": 4, "freeze_encoder_epochs": 2, "ema": 0.9, "validate_every": 2, "loss": {"terms": {"ce": 1}}}
    options = {"norm": "group_everywhere"}
    one, weights, _ = in_processes(tmp_path / "one", 1, options, section)
    two, shared, ranks = in_processes(tmp_path / "two", 2, options, section)
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-3)
    assert ranks[0] == ranks[1]
    encoder = [name for name in weights if name.startswith("encoder.")]
    start = network(**options).state_dict()
    assert any(not shared[name].equal(start[name]) for name in encoder), "the encoder thawed"


@pytest.mark.slow
def test_the_statistics_of_norms_are_one_processs_in_all(tmp_path):
    """gloo shares no norms: each process has its own statistics, and the first one's are validated and saved."""
    _, _, ranks = in_processes(tmp_path / "two", 2, {}, {"epochs": 2, "ema": 0.9, "validate_every": 1})
    assert ranks[0] == ranks[1] and len(set(ranks[0][0])) == 2


@pytest.mark.slow
def test_a_ctrl_c_in_one_process_stops_all_after_the_same_step_and_a_resume_ends_alike(tmp_path):
    section = {"epochs": 2, "ema": 0.9, "validate_every": 1}
    _, _, ranks = in_processes(tmp_path / "unbroken", 2, {}, section)
    unbroken = [digests[1] for digests, _ in ranks]
    log, _, ranks = in_processes(tmp_path / "broken", 2, {}, section, pressed="1")
    assert len(log) == 1 and [scores for _, scores in ranks] == [[1, 1], [1, 1]]
    log, _, ranks = in_processes(tmp_path / "broken", 2, {}, section)
    assert len(log) == 2 and [digests for digests, _ in ranks] == [[digest] for digest in unbroken]


@pytest.mark.slow
def test_a_sigterm_for_torchrun_saves_the_state_and_a_resume_ends_alike(tmp_path):
    """It passes the signal on to its processes, and kills them half a minute later."""
    section = {"epochs": 8, "validate_every": 2, "ema": 0.9}
    _, whole, _ = in_processes(tmp_path / "unbroken", 2, {}, section)
    log, _, ranks = in_processes(tmp_path / "broken", 2, {}, section, pressed="launcher")
    (epoch, step), other = (scores for _, scores in ranks)
    assert [epoch, step] == other and 2 <= epoch < 8 and len(log) == epoch
    assert (tmp_path / "broken" / "last.pt").exists()
    _, resumed, _ = in_processes(tmp_path / "broken", 2, {}, section)
    assert all(resumed[name].equal(tensor) for name, tensor in whole.items())


@pytest.mark.slow
def test_two_machines_are_one_group_which_goes_on_when_a_process_is_lost(tmp_path):
    """Two agents of torchrun that meet at a port, as docs/cluster.md starts them, here on one host."""
    section = {"epochs": 3, "validate_every": 1, "ema": 0.9}
    _, whole, _ = in_processes(tmp_path / "unbroken", 2, {}, section)
    folder = tmp_path / "broken"
    folder.mkdir()
    shutil.copy(tmp_path / "unbroken/run.py", folder)
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        meet = f"127.0.0.1:{place.getsockname()[1]}"
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend",
             "c10d", "--rdzv-endpoint", meet, "--rdzv-id", "loc0", "--max-restarts", "3", str(folder / "run.py"),
             str(folder), "{}", json.dumps(section)]  # fmt: skip
    agents = [subprocess.Popen(agent, env={**os.environ, "PRESSED": "killed"}, cwd=ROOT) for _ in range(2)]
    try:
        assert [one.wait(300) for one in agents] == [0, 0] and (folder / "lost").exists()
    finally:
        for one in agents:
            one.terminate()  # an agent ends its processes; one that has ended hears nothing
    assert len((folder / "log.jsonl").read_text().splitlines()) == 3
    assert all(load_file(folder / "best.safetensors")[name].equal(tensor) for name, tensor in whole.items())


def test_processes_of_one_start_meet_whatever_an_earlier_start_left():
    """Two starts with one store, as torchrun's agents keep it. The second one's processes come before the first one."""
    shared = torch.distributed.HashStore()
    for start in (b"first", b"second"):
        met: dict[int, bytes] = {}

        def come(rank, found=met, start=start):
            own = meeting.of_this_start(shared, rank, 3, timedelta(seconds=20))
            own.set(f"address {rank}", start)
            found[rank] = b" ".join(own.get(f"address {other}") for other in range(3))

        others = [threading.Thread(target=come, args=(rank,)) for rank in (1, 2, 0)]
        for one in others:
            one.start()
            time.sleep(3 * meeting.STEP)
        for one in others:
            one.join()
        assert met == dict.fromkeys(range(3), b" ".join([start] * 3))


def test_a_process_that_meets_nobody_says_so():
    shared = torch.distributed.HashStore()
    shared.set("start", "left by another")
    with pytest.raises(torch.distributed.DistStoreError, match="process 1 of 2: the first process did not answer"):
        meeting.of_this_start(shared, 1, 2, timedelta(seconds=0.2))


def test_the_answer_of_all_is_that_of_some_calls_before(monkeypatch):
    """Another process, which was pressed at its second call."""
    theirs = iter([0, 1, 1, 1, 1])

    class Group:
        def new_group(self, backend):
            assert backend == "gloo"

        def all_reduce(self, count, group, async_op):
            assert async_op
            count += next(theirs)
            return self

        def wait(self):
            pass

    monkeypatch.setattr(runtime, "_group", Group)
    stops = runtime.anywhere(lambda: False, lag=2)
    assert [stops() for _ in range(5)] == [False, False, False, True, True]
