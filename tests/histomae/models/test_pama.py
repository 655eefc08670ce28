"""PAMA: METHODS 10 F, and both forms against a restatement, one pair at a time."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from histomae.errors import ConfigError
from histomae.models.anchors import choose_anchors, direction_bins, distance_bins
from histomae.models.bag_tensors import (
    BagTensors,
    PlacedBag,
    Places,
    Placing,
    batch_bags,
    place_bag,
)
from histomae.models.pama import (
    Pama,
    PamaSpec,
    bag_loss,
    by_relative_direction,
    drop_anchors,
    main_directions,
    mask_bags,
    pama_spec,
)

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = PamaSpec(
    feature_dim=6,
    dim=16,
    depth=2,
    heads=2,
    decoder_dim=8,
    decoder_depth=2,
    decoder_heads=2,
    tiles_per_anchor=9,
)
TURN = np.array([[0, 1], [-1, 0]])


def build(spec=SPEC, *, seed=0):
    """Return a model in float64 whose every weight shows if it was forgotten."""
    generator = torch.Generator().manual_seed(seed)
    model = Pama(spec, generator=generator).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn(
                weight.shape, generator=generator, dtype=torch.float64
            )
    return model


def tissue(seed, tiles):
    """Return cells (L, 2) of a random lump and features (L, 6)."""
    random = np.random.default_rng(seed)
    row, col = np.mgrid[:14, :14]
    near = np.hypot(row - 6 + random.normal(), 1.4 * (col - 6)) + random.random(
        (14, 14)
    )
    chosen = np.argsort(near.ravel())[:tiles]
    cells = np.stack(np.unravel_index(np.sort(chosen), near.shape), 1)
    return cells, random.standard_normal((tiles, 6))


def placed(cells, features, *, compat=False, each=9):
    return place_bag(features, cells, Placing(each, compat))


def noise_for(*tiles):
    """Return noise (B, L), each row its own, with ones in the padding."""
    rows = [np.random.default_rng(count).random(count) for count in tiles]
    padded = np.ones((len(rows), max(tiles)))
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(padded)


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def bag():
    return tissue(0, 60)


def outputs(model, bags, noise):
    """Return class tokens, prediction, loss and mask."""
    with torch.no_grad():
        tokens, _ = model.encoder.encode(bags)
        found = model(bags, mask_ratio=0.75, noise=noise)
    return tokens[:, 0], found.prediction, found.loss, found.mask


def close(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


# The oracle: METHODS 6.2 and 6.3 in numpy, one anchor, head and token at a time -----


def layer_norm(x, weights, name):
    normal = (x - x.mean()) / np.sqrt(x.var() + 1e-6)
    return normal * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x, weights, name):
    return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]


def gelu(x):
    return np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])


def softmax(scores):
    scores = np.exp(np.array(scores) - max(scores))
    return scores / scores.sum()


def paca(tokens, anchors, far, where, weights, name, heads, *, compat):
    """Return what tokens and anchors take; places of the class token stand first.

    ``far`` and ``where`` are (K, 1+L) bins; in the clean form -1 is the class token's
    and 8 the direction of an anchor's own tile.
    """
    width = len(tokens[0]) // heads
    of_tokens = [np.split(linear(t, weights, f"{name}.qkv"), 3) for t in tokens]
    of_anchors = [np.split(linear(k, weights, f"{name}.qkv"), 3) for k in anchors]
    phi_far = weights[f"{name}.distance_bias"]
    phi_where = weights[f"{name}.direction_bias"]
    to_tokens = np.zeros((len(tokens), heads * width))
    to_anchors = np.zeros((len(anchors), heads * width))
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        bias = np.zeros((len(anchors), len(tokens)))
        for k, (query, _, _) in enumerate(of_anchors):
            scores = [
                query[part] @ key[part] / math.sqrt(width) for _, key, _ in of_tokens
            ]
            votes = np.zeros(8)
            for i, score in enumerate(scores):
                if compat or 0 <= where[k][i] < 8:
                    votes[where[k][i]] += abs(score)
            main = int(np.argmax(votes))
            for i in range(len(tokens)):
                bin_ = where[k][i]
                if compat or 0 <= bin_ < 8:
                    direction = phi_where[(bin_ - main) % 8]
                else:
                    direction = phi_where[8 if bin_ == 8 else 9]
                bias[k, i] = phi_far[head][far[k][i]] + direction
            taken = softmax([s + b for s, b in zip(scores, bias[k], strict=True)])
            for weight, (_, _, value) in zip(taken, of_tokens, strict=True):
                to_anchors[k, part] += weight * value[part]
        for i, (query, _, _) in enumerate(of_tokens):
            scores = [
                query[part] @ key[part] / math.sqrt(width) + bias[k, i]
                for k, (_, key, _) in enumerate(of_anchors)
            ]
            for weight, (_, _, value) in zip(softmax(scores), of_anchors, strict=True):
                to_tokens[i, part] += weight * value[part]
    return (
        [linear(one, weights, f"{name}.proj") for one in to_tokens],
        [linear(one, weights, f"{name}.proj") for one in to_anchors],
    )


def block(tokens, anchors, far, where, weights, name, heads, *, compat):
    tokens = [layer_norm(t, weights, f"{name}.norm1") for t in tokens]
    anchors = [layer_norm(k, weights, f"{name}.norm1") for k in anchors]
    taken = paca(
        tokens, anchors, far, where, weights, f"{name}.attn", heads, compat=compat
    )
    done = []
    for before, more in zip((tokens, anchors), taken, strict=True):
        after = [one + other for one, other in zip(before, more, strict=True)]
        for i, one in enumerate(after):
            hidden = linear(
                layer_norm(one, weights, f"{name}.norm2"), weights, f"{name}.mlp.fc1"
            )
            after[i] = one + linear(gelu(hidden), weights, f"{name}.mlp.fc2")
        done.append(after)
    return done


def first_column(bins, own, *, compat):
    """Put the class token's bins before those of the tokens."""
    return [[int(np.mean(row)) if compat else own, *map(int, row)] for row in bins]


def oracle(features, far, where, weights, spec, noise, ratio, *, scale=1.0):
    """Return class token, predictions (L, C), hidden (L,) and the loss."""
    compat, count = spec.compat, len(features)
    order = sorted(range(count), key=lambda i: noise[i])
    keep = int(count * (1 - ratio)) if compat else count - round(count * ratio)
    visible = order[:keep]
    tokens = [weights["encoder.cls_token"][0, 0]]
    tokens += [linear(features[i], weights, "encoder.embed") for i in visible]
    anchors = [weights["encoder.anchor_token"][0, 0] * scale for _ in far]
    seen_far = first_column(far[:, visible], 65, compat=compat)
    seen_where = first_column(where[:, visible], -1, compat=compat)
    for number in range(spec.depth):
        tokens, anchors = block(
            *(tokens, anchors, seen_far, seen_where, weights),
            *(f"encoder.blocks.{number}", spec.heads),
            compat=compat,
        )
    tokens = [layer_norm(t, weights, "encoder.norm") for t in tokens]
    anchors = [layer_norm(k, weights, "encoder.norm") for k in anchors]
    class_token = tokens[0]
    tokens = [linear(t, weights, "decoder.embed") for t in tokens]
    anchors = [linear(k, weights, "decoder.embed") for k in anchors]
    everything = [weights["decoder.mask_token"][0, 0]] * count
    for place, token in zip(visible, tokens[1:], strict=True):
        everything[place] = token
    tokens = [tokens[0], *everything]
    all_far = first_column(far, 65, compat=compat)
    all_where = first_column(where, -1, compat=compat)
    for number in range(spec.decoder_depth):
        tokens, anchors = block(
            *(tokens, anchors, all_far, all_where, weights),
            *(f"decoder.blocks.{number}", spec.decoder_heads),
            compat=compat,
        )
    predicted = [
        linear(layer_norm(t, weights, "decoder.norm"), weights, "decoder.head")
        for t in tokens[1:]
    ]
    hidden = np.array([i not in visible for i in range(count)])
    errors = [np.mean((p - f) ** 2) for p, f in zip(predicted, features, strict=True)]
    return class_token, np.array(predicted), hidden, np.mean(np.array(errors)[hidden])


@pytest.mark.parametrize("compat", [False, True])
def test_the_equations(compat):
    """Both forms, eval mode, without padding: the oracle's numbers."""
    spec = replace(SPEC, compat=compat)
    model, (cells, features) = build(spec), tissue(3, 21)
    bag = placed(cells, features, compat=compat)
    noise = noise_for(21)
    found = model(batch_bags([bag]), mask_ratio=0.75, noise=noise)
    weights = {k: v.numpy() for k, v in model.state_dict().items()}
    _, predicted, hidden, loss = oracle(
        *(features, bag.distances, bag.directions, weights, spec),
        *(noise[0].numpy(), 0.75),
    )
    np.testing.assert_array_equal(found.mask[0].numpy(), hidden)
    np.testing.assert_allclose(found.prediction[0].detach(), predicted, atol=1e-10)
    assert found.loss.item() == pytest.approx(loss, abs=1e-10)


@pytest.mark.parametrize("compat", [False, True])
def test_the_equations_while_anchors_are_dropped(compat):
    spec = replace(SPEC, compat=compat)
    model, (cells, features) = build(spec).train(), tissue(3, 44)
    bag = placed(cells, features, compat=compat)
    assert len(bag.anchors) == 5
    noise, anchor_noise = noise_for(44), torch.tensor([[0.3, 0.9, 0.1, 0.5, 0.2]])
    found = model(
        batch_bags([bag]),
        mask_ratio=0.75,
        noise=noise,
        anchor_dropout=0.4,
        anchor_noise=anchor_noise,
    )
    weights = {k: v.numpy() for k, v in model.state_dict().items()}
    kept = [2, 4, 0]
    _, predicted, _, loss = oracle(
        *(features, bag.distances[kept], bag.directions[kept], weights, spec),
        *(noise[0].numpy(), 0.75),
        scale=1 / 0.6 if compat else 1.0,
    )
    np.testing.assert_allclose(found.prediction[0].detach(), predicted, atol=1e-10)
    assert found.loss.item() == pytest.approx(loss, abs=1e-10)


# 10 F 1: kernel reorientation ---------------------------------------------------


@pytest.fixture
def votes():
    """Scores (2, 3, 4, 30) of either sign, and directions (2, 4, 30)."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 3, 4, 30, generator=generator, dtype=torch.float64)
    return scores, torch.randint(0, 8, (2, 4, 30), generator=generator)


#: Looked up in this table a direction is its own bin.
BINS = torch.arange(10.0)


def relative(scores, directions):
    return by_relative_direction(BINS, directions, main_directions(scores, directions))


class TestReorientation:
    def test_votes_are_the_sums_of_one_hot_vectors(self, votes):
        scores, directions = votes
        one_hot = torch.nn.functional.one_hot(directions, 8)[:, None]
        sums = (scores.abs()[..., None] * one_hot).sum(-2)
        assert torch.equal(main_directions(scores, directions), sums.argmax(-1))

    def test_the_main_direction_becomes_bin_0_and_all_are_bins(self, votes):
        scores, directions = votes
        main, got = main_directions(scores, directions), relative(scores, directions)
        assert set(got.unique().tolist()) == set(range(8))
        chosen = directions[:, None].expand_as(scores) == main[..., None]
        assert chosen.any(-1).all()
        assert (got[chosen] == 0).all()

    def test_a_turn_of_each_anchor_changes_nothing(self, votes):
        scores, directions = votes
        turn = torch.tensor([[3], [1], [0], [7]])
        turned = relative(scores, (directions + turn) % 8)
        assert torch.equal(turned, relative(scores, directions))

    def test_again_it_changes_nothing(self, votes):
        scores, directions = votes
        once = relative(scores, directions)
        for head in range(3):
            again = relative(scores[:, head : head + 1], once[:, head].long())
            assert torch.equal(again[:, 0], once[:, head])

    def test_tokens_in_another_order(self, votes):
        scores, directions = votes
        order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
        got = relative(scores[..., order], directions[..., order])
        assert torch.equal(got, relative(scores, directions)[..., order])

    def test_the_class_token_and_the_anchor_itself_neither_vote_nor_turn(self, votes):
        scores, directions = votes
        directions = directions.clone()
        directions[..., 0], directions[..., 1] = 9, 8
        loud = scores.clone()
        loud[..., :2] = 1e6
        got = relative(loud, directions)
        assert torch.equal(got, relative(scores, directions))
        assert (got[..., 0] == 9).all()
        assert (got[..., 1] == 8).all()

    def test_half_precision_counts_every_vote(self, votes):
        """One by one in bfloat16, 256 ones and another 300 are 256."""
        directions = torch.zeros(1, 1, 1000, dtype=torch.int64)
        directions[..., 300:], directions[..., 650:] = 1, 2
        scores = torch.ones(1, 1, 1, 1000, dtype=torch.bfloat16)
        assert main_directions(scores, directions).item() == 1
        scores[..., :300] = 1.125
        assert main_directions(scores, directions).item() == 1
        scores[..., :300] = 1.25
        assert main_directions(scores, directions).item() == 0

    def test_the_choice_has_no_gradient_but_the_bias_has(self, votes):
        scores, directions = votes
        scores = scores.requires_grad_()
        table = torch.randn(10, requires_grad=True)
        main = main_directions(scores, directions)
        assert not main.requires_grad
        by_relative_direction(table, directions, main).sum().backward()
        counts = torch.bincount(relative(scores, directions).long().flatten())
        assert torch.equal(table.grad[:8], counts.float())


# 10 F 3 and 4: what must not matter ------------------------------------------------


class TestIndifference:
    @pytest.mark.parametrize("quarters", [1, 2, 3])
    def test_a_turned_and_shifted_slide(self, model, bag, quarters):
        cells, features = bag
        turned = cells @ np.linalg.matrix_power(TURN, quarters) + (100, -7)
        noise = noise_for(60)
        here = outputs(model, batch_bags([placed(cells, features)]), noise)
        there = outputs(model, batch_bags([placed(turned, features)]), noise)
        for one, other in zip(here, there, strict=True):
            close(one, other)

    def test_a_mirrored_slide_is_another(self, model, bag):
        cells, features = bag
        here = outputs(model, batch_bags([placed(cells, features)]), noise_for(60))
        mirrored = placed(cells * (1, -1), features)
        there = outputs(model, batch_bags([mirrored]), noise_for(60))
        assert (here[0] - there[0]).abs().max() > 1e-4

    def test_the_published_form_minds_turns(self, bag):
        cells, features = bag
        model = build(replace(SPEC, compat=True))
        here, there = (
            outputs(
                model, batch_bags([placed(one, features, compat=True)]), noise_for(60)
            )
            for one in (cells, cells @ TURN)
        )
        assert (here[0] - there[0]).abs().max() > 1e-4

    def test_tiles_in_another_order(self, model, bag):
        cells, features = bag
        order = np.random.default_rng(2).permutation(60)
        noise = noise_for(60)
        here = outputs(model, batch_bags([placed(cells, features)]), noise)
        moved = placed(cells[order], features[order])
        there = outputs(model, batch_bags([moved]), noise[:, order])
        close(here[0], there[0])
        close(here[1][:, order], there[1])
        close(here[2], there[2])
        assert torch.equal(here[3][:, order], there[3])

    def test_anchors_in_another_order(self, model, bag):
        cells, features = bag
        one = placed(cells, features)
        order = np.random.default_rng(3).permutation(len(one.anchors))
        assert len(order) == 7
        other = PlacedBag(
            features, one.anchors[order], one.distances[order], one.directions[order]
        )
        here = outputs(model, batch_bags([one]), noise_for(60))
        there = outputs(model, batch_bags([other]), noise_for(60))
        for left, right in zip(here, there, strict=True):
            close(left, right)

    def test_padding_and_neighbours_in_the_batch(self, model):
        """Each of three bags alone, and together padded to the largest."""
        sizes = (23, 60, 2)
        bags = [placed(*tissue(seed, tiles)) for seed, tiles in enumerate(sizes)]
        noise = noise_for(*sizes)
        together = outputs(model, batch_bags(bags), noise)
        losses = []
        for row, tiles in enumerate(sizes):
            alone = outputs(
                model, batch_bags(bags[row : row + 1]), noise[[row], :tiles]
            )
            close(together[0][row], alone[0][0])
            close(together[1][row, :tiles], alone[1][0])
            assert torch.equal(together[3][row, :tiles], alone[3][0])
            assert not together[3][row, tiles:].any()
            losses.append(alone[2])
        close(together[2], torch.stack(losses).mean())

    @pytest.mark.parametrize("extra", [1, 17, 400])
    def test_any_amount_of_padding_with_anything_in_it(self, model, bag, extra):
        cells, features = bag
        bags, noise = batch_bags([placed(cells, features)]), noise_for(60)
        rubbish = padded_with_rubbish(bags, extra)
        more_noise = torch.cat([noise, torch.zeros(1, extra)], 1)
        here, there = outputs(model, bags, noise), outputs(model, rubbish, more_noise)
        close(here[0], there[0])
        close(here[1], there[1][:, :60])
        close(here[2], there[2])
        assert torch.equal(here[3], there[3][:, :60])
        assert not there[3][:, 60:].any()

    def test_padding_has_no_gradient_and_gives_none(self, bag):
        cells, features = bag
        grads = []
        for extra in (0, 31):
            model = build().train()
            bags = batch_bags([placed(cells, features)])
            noise = noise_for(60)
            if extra:
                bags = padded_with_rubbish(bags, extra)
                noise = torch.cat([noise, torch.zeros(1, extra)], 1)
            anchor_noise = torch.rand(1, bags.places.real_anchors.shape[1])
            anchor_noise[:, :7] = torch.arange(7) / 7
            anchor_noise[:, 7:] = 0
            model(
                bags,
                mask_ratio=0.75,
                noise=noise,
                anchor_dropout=0.2,
                anchor_noise=anchor_noise,
            ).loss.backward()
            grads.append([weight.grad for weight in model.parameters()])
        for one, other in zip(*grads, strict=True):
            close(one, other)


def padded_with_rubbish(bags, extra):
    """Add tokens and anchors that are no real ones and hold anything but bins."""
    features = torch.nn.functional.pad(bags.features, (0, 0, 0, extra), value=1e30)
    features[:, -1] = math.nan
    places = bags.places
    sides = (0, extra, 0, extra)
    return BagTensors(
        features,
        Places(
            torch.nn.functional.pad(places.distances, sides, value=63),
            torch.nn.functional.pad(places.directions, sides, value=3),
            torch.nn.functional.pad(places.real_tokens, (0, extra)),
            torch.nn.functional.pad(places.real_anchors, (0, extra)),
        ),
    )


# 10 F 5: anchor dropout ------------------------------------------------------------


class TestAnchorDropout:
    @pytest.mark.parametrize(
        ("anchors", "share", "kept"),
        [
            *((5, 0.2, 4), (10, 0.2, 8), (7, 0.2, 5), (100, 0.9, 10)),
            *((1, 0.2, 1), (3, 0.99, 1)),
        ],
    )
    def test_how_many_stay(self, anchors, share, kept):
        places = self.places(anchors)
        got = drop_anchors(places, share, torch.rand(1, anchors))
        assert got.real_anchors.sum() == kept
        assert got.distances.shape == (1, kept, 4)

    def test_rows_stay_together(self):
        """Row k of the distances is k, of the directions k mod 8."""
        places = self.places(20)
        noise = torch.rand(1, 20, generator=torch.Generator().manual_seed(0))
        got = drop_anchors(places, 0.5, noise)
        chosen = noise[0].argsort()[:10]
        assert torch.equal(got.distances[0, :, 0], chosen)
        assert torch.equal(got.directions[0, :, 0], chosen % 8)

    def test_padded_anchors_do_not_count(self):
        places = self.places(10)
        places.real_anchors[0, 5:] = False
        noise = torch.linspace(1, 0, 10)[None]
        got = drop_anchors(places, 0.2, noise)
        assert got.distances[0, :, 0].tolist() == [4, 3, 2, 1]
        assert got.real_anchors.all()

    def test_none_is_dropped_in_eval(self, model, bag):
        bags = batch_bags([placed(*bag)])
        noise, anchor_noise = noise_for(60), torch.rand(1, 7)
        plain = model(bags, mask_ratio=0.75, noise=noise)
        with_dropout = model(
            bags,
            mask_ratio=0.75,
            noise=noise,
            anchor_dropout=0.5,
            anchor_noise=anchor_noise,
        )
        assert torch.equal(plain.prediction, with_dropout.prediction)

    def test_dropping_changes_outputs_but_not_their_size(self, bag):
        model = build().train()
        bags, noise = batch_bags([placed(*bag)]), noise_for(60)
        plain = model(bags, mask_ratio=0.75, noise=noise).prediction
        generator = torch.Generator().manual_seed(0)
        drops = torch.stack(
            [
                model(
                    bags,
                    mask_ratio=0.75,
                    noise=noise,
                    anchor_dropout=0.2,
                    anchor_noise=torch.rand(1, 7, generator=generator),
                ).prediction
                for _ in range(40)
            ]
        ).detach()
        assert (drops[0] - plain).abs().max() > 1e-3
        apart = (drops.mean(0) - plain).square().mean()
        assert apart < 0.1 * plain.var()

    @staticmethod
    def places(anchors):
        row = torch.arange(anchors)[None, :, None].expand(1, anchors, 4)
        return Places(
            row.clone(),
            row % 8,
            torch.ones(1, 4, dtype=torch.bool),
            torch.ones(1, anchors, dtype=torch.bool),
        )


# 10 F 6: the loss, and what it costs -------------------------------------------------


class TestMasking:
    def test_counts_ranks_and_padding(self):
        real = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)
        noise = torch.tensor([[0.5, 0.1, 0.9, 0.3, 0.2], [0.9, 0.4, 0.6, 0.0, 0.0]])
        got = mask_bags(noise, real, torch.tensor([3, 1]))
        assert got.ids_keep[0].tolist() == [1, 4, 3]
        assert got.ids_keep[1, 0] == 1
        assert got.real_keep.tolist() == [[True] * 3, [True, False, False]]
        assert got.hidden.int().tolist() == [[1, 0, 1, 0, 0], [1, 0, 1, 1, 1]]
        assert got.rank[0].tolist() == [0, 0, 0, 2, 1]

    @pytest.mark.parametrize(("tiles", "hidden"), [(2, 1), (3, 2), (60, 45), (7, 5)])
    def test_a_share_of_real_tiles_is_hidden(self, model, tiles, hidden):
        bags = batch_bags([placed(*tissue(1, tiles)), placed(*tissue(2, 61))])
        mask = model(bags, mask_ratio=0.75, noise=torch.rand(2, 61)).mask
        assert mask[0].sum() == hidden
        assert mask[1].sum() == 46

    def test_all_tiles_are_hidden_alike(self, model, bag):
        """Over many masks each tile is hidden three times of four: χ² with 59 dof."""
        bags = batch_bags([placed(*bag)])
        keep = model._visible(bags.places.real_tokens, 0.75).expand(4000)
        noise = torch.rand(4000, 60, generator=torch.Generator().manual_seed(5))
        hidden = mask_bags(noise, torch.ones(4000, 60, dtype=torch.bool), keep).hidden
        times = hidden.sum(0).double()
        chi2 = ((times - 3000) ** 2 / (4000 * 0.75 * 0.25)).sum()
        assert 25 < chi2 < 110

    @pytest.mark.parametrize("ratio", [0.0, 1.0])
    def test_a_ratio_that_leaves_nothing_is_refused(self, model, bag, ratio):
        with pytest.raises(ValueError, match=r"ratio such as 0\.75"):
            model(batch_bags([placed(*bag)]), mask_ratio=ratio, noise=noise_for(60))

    def test_one_tile_is_refused(self, model):
        bags = batch_bags([placed(*tissue(0, 1))])
        with pytest.raises(ValueError, match="two tiles or more"):
            model(bags, mask_ratio=0.75, noise=noise_for(1))


class TestLoss:
    def test_by_hand(self):
        target = torch.tensor([[[0.0, 0.0], [1.0, 1.0]], [[2.0, 2.0], [3.0, 3.0]]])
        prediction = torch.tensor([[[1.0, 3.0], [9.0, 9.0]], [[2.0, 4.0], [3.0, 5.0]]])
        mask = torch.tensor([[True, False], [True, True]])
        assert bag_loss(prediction, target, mask).item() == (5 + (2 + 2) / 2) / 2

    def test_visible_tiles_do_not_count(self, bag):
        """Their predictions get no gradient at all."""
        model, (cells, features) = build(), bag
        bags = padded_with_rubbish(batch_bags([placed(cells, features)]), 5)
        noise = torch.cat([noise_for(60), torch.zeros(1, 5)], 1)
        found = model(bags, mask_ratio=0.75, noise=noise)
        found.prediction.retain_grad()
        found.loss.backward()
        moved = found.prediction.grad.abs().sum(-1) > 0
        assert torch.equal(moved, found.mask)

    def test_hidden_tiles_are_not_seen(self, model, bag):
        cells, features = bag
        noise = noise_for(60)
        bags = batch_bags([placed(cells, features)])
        first = model(bags, mask_ratio=0.75, noise=noise)
        other = features.copy()
        other[first.mask[0].numpy()] = 7.0
        second = model(batch_bags([placed(cells, other)]), mask_ratio=0.75, noise=noise)
        assert torch.equal(first.prediction, second.prediction)
        assert not torch.equal(first.loss, second.loss)

    def test_every_weight_learns(self, bag):
        model = build()
        model(
            batch_bags([placed(*bag)]), mask_ratio=0.75, noise=noise_for(60)
        ).loss.backward()
        for name, weight in model.named_parameters():
            assert weight.grad is not None, name
            assert weight.grad.abs().sum() > 0, name

    def test_it_learns_one_batch_by_heart(self):
        spec = replace(SPEC, dim=32, depth=1, decoder_dim=32, decoder_depth=1)
        model = Pama(spec, generator=torch.Generator().manual_seed(0))
        bags = [
            placed(cells, features.astype(np.float32), each=3)
            for cells, features in (tissue(1, 12), tissue(2, 16))
        ]
        batch, noise = batch_bags(bags), noise_for(12, 16)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        losses = []
        for _ in range(400):
            loss = model(batch, mask_ratio=0.75, noise=noise).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        # A vote that falls otherwise makes a step: the best of the last is judged.
        assert losses[0] > 0.9
        assert min(losses[300:]) < 0.1


class Largest(TorchDispatchMode):
    """Notes the most numbers that any tensor has, and any with two long sides."""

    def __init__(self, tokens):
        super().__init__()
        self.tokens, self.numbers, self.square = tokens, 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, torch.Tensor):
                self.numbers = max(self.numbers, one.untyped_storage().nbytes())
                if sum(side >= self.tokens // 4 for side in one.shape) > 1:
                    self.square.append((func, one.shape))
        return result


def test_nothing_has_a_side_of_tokens_twice():
    """Forward and backward; the decoder sees all tokens, the encoder a quarter."""
    largest = {}
    for tiles in (600, 1200):
        side = np.argwhere(np.ones((40, 30), bool))[:tiles]
        features = np.zeros((tiles, 6), np.float32)
        bags = batch_bags([placed(side, features, each=tiles // 12)])
        model = Pama(SPEC).train()
        with Largest(tiles) as seen:
            model(
                bags,
                mask_ratio=0.75,
                noise=torch.rand(1, tiles),
                anchor_dropout=0.2,
                anchor_noise=torch.rand(1, 13),
            ).loss.backward()
        assert seen.square == []
        largest[tiles] = seen.numbers
    # Twice the tokens at as many anchors: twice the memory, not four times.
    assert largest[1200] < 2.1 * largest[600]


# Looks and sizes ----------------------------------------------------------------


class TestScale:
    def test_tiles_are_taken_and_predicted_in_units_of_the_spread(self, bag):
        """As a model without scale sees tiles that were scaled before."""
        cells, features = bag
        mean, std = torch.randn(6).double(), torch.rand(6).double() + 0.5
        plain, scaling = build(), build()
        scaling.encoder.set_scale(mean, std)
        tiles = (features - mean.numpy()) / std.numpy()
        noise = noise_for(60)
        bags = padded_with_rubbish(batch_bags([placed(cells, features)]), 9)
        more_noise = torch.cat([noise, torch.zeros(1, 9)], 1)
        here = outputs(plain, batch_bags([placed(cells, tiles)]), noise)
        there = outputs(scaling, bags, more_noise)
        close(here[0], there[0])
        close(here[1], there[1][:, :60])
        close(here[2], there[2])

    def test_what_never_changes_is_only_shifted(self):
        model = build()
        std = torch.tensor([1.0, 0.0, 2.0, 3.0, 4.0, 5.0]).double()
        model.encoder.set_scale(torch.ones(6).double(), std)
        assert model.encoder.feature_std.tolist() == [1, 1, 2, 3, 4, 5]

    def test_the_scale_is_kept_with_the_weights(self):
        one, other = build(), build()
        one.encoder.set_scale(torch.ones(6), 2 * torch.ones(6))
        other.load_state_dict(one.state_dict())
        assert other.encoder.feature_std.tolist() == [2] * 6
        assert not other.encoder.feature_std.requires_grad


class TestLooks:
    def test_they_are_what_the_model_mixes_with(self, model, bag):
        bags = batch_bags([placed(*bag), placed(*tissue(4, 31))])
        looks = model.encoder.looks(bags)
        assert len(looks) == SPEC.depth
        for one in looks:
            assert one.anchors.shape == (2, 2, 7, 61)
            assert one.tokens.shape == (2, 2, 61, 7)
            assert one.main_directions.shape == (2, 2, 7)
            close(one.anchors[0].sum(-1), torch.ones(2, 7).double())
            close(one.tokens[1, :, :32].sum(-1), torch.ones(2, 32).double())
        # The second bag has 31 tiles and 4 anchors: nobody looks at its padding.
        assert looks[0].anchors[1, :, :4, 32:].abs().max() == 0
        assert looks[0].tokens[1, :, :32, 4:].abs().max() == 0

    def test_they_turn_with_the_slide(self, model, bag):
        cells, features = bag
        here = model.encoder.looks(batch_bags([placed(cells, features)]))
        there = model.encoder.looks(batch_bags([placed(cells @ TURN, features)]))
        for one, other in zip(here, there, strict=True):
            close(one.anchors, other.anchors)
            close(one.tokens, other.tokens)
            assert torch.equal((one.main_directions + 2) % 8, other.main_directions)


class TestSpec:
    def test_the_published_size(self):
        with torch.device("meta"):
            model = Pama(pama_spec("pama_base", 384))
        count = sum(weight.numel() for weight in model.parameters())
        encoder = sum(weight.numel() for weight in model.encoder.parameters())
        assert (round(count / 1e6, 1), round(encoder / 1e6, 1)) == (57.8, 50.8)

    def test_weights_come_from_the_generator(self):
        one, again, other = (
            Pama(SPEC, generator=torch.Generator().manual_seed(seed)).state_dict()
            for seed in (0, 0, 1)
        )
        for name, weight in one.items():
            assert torch.equal(weight, again[name])
            constant = name.endswith(("feature_mean", "feature_std"))
            if "norm" not in name and not name.endswith("bias") and not constant:
                assert not torch.equal(weight, other[name])

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"dim": 18, "heads": 4}, "dim"),
            ({"decoder_dim": 30, "decoder_heads": 4}, "decoder_dim"),
            ({"depth": 0}, "depth"),
            ({"tiles_per_anchor": 0}, "tiles_per_anchor"),
            ({"feature_dim": 10**9}, "feature_dim"),
        ],
    )
    def test_what_cannot_be_is_refused(self, change, field):
        with pytest.raises(ConfigError) as caught:
            replace(SPEC, **change)
        assert caught.value.field == field


def test_places_are_those_of_the_geometry(bag):
    cells, features = bag
    got = placed(cells, features)
    anchors = choose_anchors(cells, 9)
    np.testing.assert_array_equal(got.anchors, anchors)
    np.testing.assert_array_equal(got.distances, distance_bins(cells, anchors))
    np.testing.assert_array_equal(got.directions, direction_bins(cells, anchors))
