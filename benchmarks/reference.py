"""What ours is measured against: the plain way to compute the same thing,
as research code has it."""

import numpy as np
import torch
import torch.nn.functional as F


def bert_on_padding(bert, pieces):
    """BertModel on a batch padded to its longest caption. pieces: (B, L) ids,
    0 beyond each caption. (B, L, hidden)"""
    return bert(input_ids=pieces, attention_mask=(pieces != 0).long()).last_hidden_state


def relations_by_caption(words, lengths, regions, mlp_t2i, mlp_i2t, topk):
    """Cross-modal relations with a loop over captions: each against all images,
    at its own length, with autograd on.

    Returns relevance and mean match, (B, B) each, of captions x images, and the same of images x
    captions.
    """
    found = []
    regions = F.normalize(regions, dim=-1)
    for caption, length in enumerate(lengths.tolist()):
        selected = min(max(length, topk), words.size(1))
        own = F.normalize(words[caption, :selected], dim=-1).repeat(len(regions), 1, 1)
        match = F.leaky_relu(torch.bmm(own, regions.transpose(1, 2)), 0.1)  # (B, selected, R)
        by_piece = F.normalize(match, dim=1).amax(2)
        by_region = F.normalize(match, dim=2)[:, :length].amax(1)
        t2i_mean, i2t_mean = by_piece[:, :length].mean(1), by_region.mean(1)
        t2i_relevance = mlp_t2i(by_piece.topk(topk, dim=1).values).squeeze(1) + t2i_mean
        i2t_relevance = mlp_i2t(by_region.topk(topk, dim=1).values).squeeze(1) + i2t_mean
        found.append((t2i_relevance, t2i_mean, i2t_relevance, i2t_mean))
    t2i_relevance, t2i_mean, i2t_relevance, i2t_mean = map(torch.stack, zip(*found))
    return t2i_relevance, t2i_mean, i2t_relevance.T, i2t_mean.T


def scan_by_caption(regions, words, lengths, direction="t2i", temperature=9.0):
    """SCAN's scores (clipped_l2norm, mean), (B, C), with a loop over captions: each is copied to
    every image, and every query gets its attended vector."""
    columns = []
    for caption, length in enumerate(lengths.tolist()):
        own = words[caption, :length].repeat(len(regions), 1, 1)  # (B, n, E)
        query, context = (own, regions) if direction == "t2i" else (regions, own)
        match = F.leaky_relu(torch.bmm(context, query.transpose(1, 2)), 0.1)  # (B, k, q)
        match = match / (match.pow(2).sum(2, keepdim=True).sqrt() + 1e-8)
        weights = torch.softmax(temperature * match.transpose(1, 2).contiguous(), dim=2)
        columns.append(_cosine(query, torch.bmm(weights, context)).mean(1))
    return torch.stack(columns, 1)


def naaf_by_caption(regions, words, lengths, threshold=0.0):
    """NAAF's training scores at a fixed threshold, (B, C), with a loop over captions."""
    columns = []
    for caption, length in enumerate(lengths.tolist()):
        own = words[caption, :length].repeat(len(regions), 1, 1)  # (B, n, E)
        raw = torch.bmm(own, regions.transpose(1, 2))  # (B, n, R)
        is_above = (raw > threshold).to(raw.dtype)
        positive = is_above * torch.exp(20 * (raw - threshold) * is_above)
        positive = positive / (positive.sum(2, keepdim=True) + 1e-8)
        attended = torch.bmm(positive, regions)
        matched = (own * attended).sum(2) / attended.norm(dim=2).clamp(min=1e-8)
        clipped = F.leaky_relu(raw, 0.1)
        clipped = clipped / (clipped.pow(2).sum(1, keepdim=True).sqrt() + 1e-8)
        relevance = (torch.softmax(20 * clipped, dim=2) * raw).sum(2)
        negative = (raw.amax(2) - threshold).clamp(max=0)
        columns.append((matched + relevance + negative).mean(1))
    return torch.stack(columns, 1)


def _cosine(left, right):
    return (left * right).sum(2) / (left.norm(dim=2) * right.norm(dim=2)).clamp(min=1e-8)


def ranks_by_sorting(similarities):
    """Ranks by sorting the candidates of every query. similarities: (N, 5N) array. Returns
    (N,) and (5N,)."""
    num_images = len(similarities)
    image_to_text = np.zeros(num_images, dtype=np.int64)
    for image in range(num_images):
        order = np.argsort(similarities[image])[::-1]
        image_to_text[image] = min(np.where(order == 5 * image + own)[0][0] for own in range(5))
    text_to_image = np.zeros(5 * num_images, dtype=np.int64)
    for image in range(num_images):
        for caption in range(5 * image, 5 * image + 5):
            order = np.argsort(similarities[:, caption])[::-1]
            text_to_image[caption] = np.where(order == image)[0][0]
    return image_to_text, text_to_image


class OnePairAtATime(torch.utils.data.Dataset):
    """Training pairs a sample at a time, with a tensor for each,
    cut into pieces anew each time it is asked for."""

    def __init__(self, split, texts, tokeniser):
        self.texts, self.tokeniser = texts, tokeniser
        # "r" makes PyTorch warn
        self.regions = np.load(split.regions_path, mmap_mode="c", allow_pickle=False)

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        regions = torch.Tensor(self.regions[index // 5])
        regions = regions[torch.rand(len(regions)) < 0.8]
        pieces = []
        for word in self.tokeniser.tokenize(self.texts[index]):
            if np.random.rand() >= 0.2 or np.random.rand() < 0.5:
                pieces.append(word)
        ids = self.tokeniser.convert_tokens_to_ids(["[CLS]", *pieces, "[SEP]"])
        return regions, torch.Tensor(ids), index // 5


def collate(samples):
    """Pad samples of `OnePairAtATime` one after the other."""
    samples.sort(key=lambda sample: -len(sample[1]))
    regions = torch.zeros(
        len(samples), max(len(sample[0]) for sample in samples), samples[0][0].size(1)
    )
    pieces = torch.zeros(len(samples), len(samples[0][1]), dtype=torch.long)
    for row, (found, ids, _) in enumerate(samples):
        regions[row, : len(found)] = found
        pieces[row, : len(ids)] = ids
    return regions, pieces, torch.tensor([sample[2] for sample in samples])
