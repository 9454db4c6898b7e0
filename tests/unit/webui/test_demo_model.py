"""The demo model's script: its world, its judge, and that it lets nothing out that fails."""

import random
from pathlib import Path

import pytest
import torch

from demo_model import autoencoder, clips, gate, model, train, trainer
from demo_model.clips import SCENES, Scene

SCENE = Scene("red", "circle", "blue", "left")


@pytest.fixture(autouse=True)
def small_and_alone(monkeypatch):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    monkeypatch.setattr(trainer, "PICTURES", 16)
    monkeypatch.setattr(train, "LOOKED_AT", 2)
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return model.make_parts(1, tmp_path_factory.mktemp("parts"))


def drawn(scenes, frames=clips.FRAMES, seed=3):
    return clips.draw(list(scenes), torch.arange(float(frames)), torch.Generator().manual_seed(seed))


def shown(scenes, **options):
    return [gate.to_bytes(clip) for clip in drawn(scenes, **options)]


def test_the_judge_sees_what_a_clip_shows():
    for scene, clip in zip(SCENES[::11], shown(SCENES[::11]), strict=True):
        assert gate.look(clip) == gate.Seen(scene.colour, scene.background, scene.direction, scene.shape)


def test_the_judge_is_not_told_by_the_order_of_colours_alone():
    clip = shown([SCENE])[0]
    assert gate.look(clip.flip(0)).direction == "right"
    assert gate.look(clip.transpose(2, 3)).direction == "up"
    assert gate.look(clip.flip(1)).colour != "red"


def test_a_still_picture_a_plain_one_and_noise_are_not_taken_for_a_moving_shape():
    still = shown([SCENE])[0][2:3].expand(16, -1, -1, -1)
    assert gate.look(still).direction == ""
    plain = torch.zeros(16, 3, 64, 64) + torch.tensor([30.0, 60.0, 220.0]).view(3, 1, 1)
    assert gate.look(plain) == gate.Seen(background="blue")
    noise = torch.randint(256, (16, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    assert gate.look(noise).direction == ""
    jumping = shown([SCENE])[0][torch.tensor([0, 5, 1, 4, 2, 3, 0, 5, 1, 4, 2, 3, 0, 5, 1, 4])]
    assert gate.look(jumping).direction == ""


def test_the_shape_can_be_seen_in_every_frame_and_16_are_a_loop():
    pictures = drawn(SCENES[:24], frames=32)
    ground = pictures.flatten(3).mode(3).values[..., None, None]
    assert ((pictures - ground).abs().sum(2) > 0.2).sum((2, 3)).min() > 40
    assert torch.allclose(pictures[:, :16], pictures[:, 16:], atol=1e-3)


def test_the_gate_asks_for_everything_and_always_for_the_same():
    asked = gate.cases()
    assert len(asked) == 128
    assert asked == gate.cases()
    for name, count in (("colour", 6), ("background", 4), ("direction", 4), ("shape", 3)):
        assert len({getattr(scene, name) for scene, _, _ in asked}) == count
    assert all(
        f"{scene.colour} {scene.shape} mov" in prompt and scene.direction in prompt for scene, prompt, _ in asked
    )


@pytest.mark.parametrize(
    ("right", "passed"),
    [
        ({"colour": 90, "background": 90, "direction": 80}, True),
        ({"colour": 89, "background": 100, "direction": 100}, False),
        ({"colour": 100, "background": 89, "direction": 100}, False),
        ({"colour": 100, "background": 100, "direction": 79}, False),
    ],
)
def test_the_gate_passes_at_its_shares_and_not_below(right, passed):
    assert gate.Result(100, right | {"shape": 0}).passed is passed


def test_every_word_that_training_shows_is_one_token(parts):
    for text in clips.corpus():
        words = text.replace(",", " ,").split()
        assert [token.removesuffix("</w>") for token in parts.tokenizer.tokenize(text)] == words
    assert parts.tokenizer("a cat", padding="max_length").input_ids[-1] == parts.tokenizer.eos_token_id


def test_frames_are_placed_by_their_numbers_and_back(parts):
    before = {name: value.clone() for name, value in parts.unet.state_dict().items() if name.endswith(".pe")}
    model.place_frames(parts.unet, torch.tensor([3, 7]))
    for name, value in parts.unet.state_dict().items():
        if name.endswith(".pe"):
            assert torch.equal(value, before[name][:, [3, 7]])
    model.place_frames(parts.unet, torch.arange(model.LONGEST))
    assert all(torch.equal(parts.unet.state_dict()[name], value) for name, value in before.items())


def test_latents_are_the_picture_in_a_quarter_of_its_size():
    pictures = drawn(SCENES[:8], frames=2).flatten(0, 1)
    latents = autoencoder.thumbnails(pictures)
    assert latents.shape == (16, model.LATENTS, 8, 8)
    small = torch.nn.functional.avg_pool2d(autoencoder.enlarged(latents), 4)
    assert torch.allclose(small, torch.nn.functional.avg_pool2d(pictures, 4), atol=1e-6)
    assert torch.allclose(latents[:, :3], torch.nn.functional.avg_pool2d(pictures[..., :60, :60], 4)[..., ::2, ::2])


def test_training_goes_on_from_its_state_as_if_it_had_not_stopped(tmp_path):
    def fresh():
        parts = model.make_parts(1, tmp_path)
        return trainer.Trainer(parts, 4, 1, "cpu"), parts

    straight, wanted = fresh()
    for _ in range(3):
        straight.train_step()
    first, _ = fresh()
    first.train_step()
    first.train_step()
    first.save(tmp_path / "state.pt")
    second, got = fresh()
    second.load(tmp_path / "state.pt")
    second.train_step()
    assert second.step == 3
    assert all(torch.equal(a, b) for a, b in zip(wanted.unet.parameters(), got.unet.parameters(), strict=True))
    with straight.averaged() as one, second.averaged() as other:
        assert all(torch.equal(a, b) for a, b in zip(one.unet.parameters(), other.unet.parameters(), strict=True))
    assert not (tmp_path / "state.tmp").exists()


def test_the_autoencoder_goes_on_from_its_state_as_if_it_had_not_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(autoencoder, "BATCH", 2)

    def fresh():
        torch.manual_seed(1)
        vae = model.make_autoencoder()
        return autoencoder.Teacher(vae, 6, 1, "cpu"), vae

    straight, wanted = fresh()
    first, _ = fresh()
    for _ in range(3):
        straight.train_step(print)
    for _ in range(2):
        first.train_step(print)
    first.save(tmp_path / "autoencoder.state.pt")
    second, got = fresh()
    second.load(tmp_path / "autoencoder.state.pt")
    second.train_step(print)
    assert second.step == 3
    assert all(torch.equal(a, b) for a, b in zip(wanted.parameters(), got.parameters(), strict=True))


def test_the_learning_rate_rises_and_falls_once():
    rates = [trainer.rate(step, 1000) for step in range(1001)]
    top = rates.index(max(rates))
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] == pytest.approx(trainer.LAST_RATE)


def test_the_engine_loads_what_is_exported_and_it_is_small(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "STEPS", 1)
    monkeypatch.setattr(gate, "FRAMES", 3)
    model.export(parts, tmp_path / "models")
    assert sum(path.stat().st_size for path in (tmp_path / "models").rglob("*") if path.is_file()) < 15e6
    ((scene, clip),) = gate.generated(tmp_path / "models", tmp_path, [(SCENE, SCENE.prompt(), 1)], "cpu", 1)
    assert scene is SCENE
    assert clip.shape == (3, 3, 64, 64)


def passing(models: Path, *_: object):
    """In the engine's place: exactly what is asked for."""
    assert (models / "motion_module" / "tiny").is_dir()
    scenes = [scene for scene, _, _ in gate.cases(8, 1)]
    return zip(scenes, shown(scenes), strict=True)


def failing(*arguments: object):
    scenes, made = zip(*passing(*arguments), strict=True)
    return zip(scenes, made[::-1], strict=True)


@pytest.mark.parametrize("good", [True, False])
def test_only_models_that_pass_the_gate_are_left(tmp_path, monkeypatch, good):
    monkeypatch.setattr(gate, "generated", passing if good else failing)
    monkeypatch.setattr(train, "FAITHFUL", 0.0)
    monkeypatch.setattr(autoencoder, "BATCH", 2)
    arguments = ["--work", str(tmp_path), "--steps", "1", "--autoencoder-steps", "4"]
    assert train.main(arguments) == (train.DONE if good else train.FAILED)
    assert (tmp_path / "models").is_dir() is good
    assert not (tmp_path / "models.unproved").exists()
    assert (tmp_path / "state.pt").is_file()


def test_a_blurring_autoencoder_lets_nothing_out(tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "generated", passing)
    assert train.main(["--work", str(tmp_path), "--steps", "1", "--autoencoder-steps", "0"]) == train.FAILED
    assert not (tmp_path / "models").exists()


def test_when_the_time_is_over_nothing_is_judged_but_on_request(tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "generated", passing)
    monkeypatch.setattr(train, "FAITHFUL", 0.0)
    arguments = ["--work", str(tmp_path), "--minutes", "0"]
    assert train.main(arguments) == train.NOT_DONE
    assert not (tmp_path / "models").exists()
    assert train.main([*arguments, "--gate", "--autoencoder-steps", "0"]) == train.DONE
    assert (tmp_path / "models").is_dir()


def test_one_of_the_ways_to_say_it_names_all_that_is_to_be_seen():
    chance = random.Random(1)
    for scene in SCENES[::17]:
        words = clips.spoken(scene, chance).replace(",", " ").split()
        assert {scene.colour, scene.shape, scene.direction, scene.background} <= set(words)
