"""Retrieval between images and texts: how often what belongs together is found.

recall@k, both ways, as LiT reports it on MS-COCO, where an image has five captions (Zhai et al.
2022, arXiv:2111.07991).
"""

from collections.abc import Sequence

import numpy as np

from vit_jax.errors import UserError

KS = (1, 5, 10)
_SCORES = 1 << 24  # that are held at a time, 64 MB in float32


def recall(
    zimg: np.ndarray, ztxt: np.ndarray, image_of: Sequence[int] | np.ndarray, ks: Sequence[int] = KS
) -> dict[str, float]:
    """The shares of images and of texts that find one another, 0 to 1.

    Args:
      zimg: Unit vectors of N images, [N, D].
      ztxt: Unit vectors of M texts, [M, D].
      image_of: The number of the image that each text belongs to; an image may have several.
      ks: How far down the ranking to look.

    Returns:
      'image_to_text@k', the share of images with one of their texts among the k most similar ones,
      and 'text_to_image@k', the share of texts with their image among the k most similar ones.

    Raises:
      UserError: for an image without a text, and for vectors that are not finite.
    """
    owners, images = np.asarray(image_of), np.arange(len(zimg))
    if lonely := sorted(set(images.tolist()) - set(owners.tolist())):
        raise UserError(
            f"every image needs a text; {len(lonely)} of {len(zimg)} have none, the first is "
            f"number {lonely[0]}"
        )
    found = {
        "image_to_text": ranks(zimg, ztxt, images, owners),
        "text_to_image": ranks(ztxt, zimg, owners, images),
    }
    return {f"{way}@{k}": float((rank < k).mean()) for way, rank in found.items() for k in ks}


def ranks(
    queries: np.ndarray, items: np.ndarray, group: np.ndarray, group_of_items: np.ndarray
) -> np.ndarray:
    """How many items come before the first that belongs to each query, int [queries].

    Items are ranked by their similarity, the dot product; of equal ones the earlier comes first.
    Not all similarities are held at a time.

    Args:
      queries, items: Vectors [Q, D] and [I, D].
      group, group_of_items: What belongs together has one number, [Q] and [I]; every query has an
        item.

    Raises:
      UserError: for vectors that are not finite, which have no ranking.
    """
    if not (np.isfinite(queries).all() and np.isfinite(items).all()):
        raise UserError("vectors that are NaN or infinite have no ranking; look at the weights")
    found, rows = [], max(1, _SCORES // max(1, len(items)))
    for start in range(0, len(queries), rows):
        part = slice(start, start + rows)
        scores = queries[part] @ items.T
        own = np.where(group[part, None] == group_of_items[None], scores, -np.inf)
        first = own.argmax(axis=1)[:, None]
        best = np.take_along_axis(own, first, axis=1)
        before = (scores == best) & (np.arange(len(items))[None] < first)
        found.append(((scores > best) | before).sum(axis=1))
    return np.concatenate(found)
