"""Training steps on a GPU, the GPU table of RESULTS.md: `python benchmarks/gpu.py`.

B/16 and L/16 in bfloat16, each batch size in a process of its own, against timm with torch.compile
and its fused attention on the same card. Bars: at the best batch of each, ours >= 1.2 times timm's
images/s, and L/16 with a FLOP utilisation of at least 50 %. Our attention runs once as 'auto'
chooses and once by 'xla', which shows what cuDNN's is worth.

At a tiny size it runs anywhere:

    python benchmarks/gpu.py ViT-Ti_16 --batches 2,4 --image-size 32 --rounds 2
"""

import argparse
import json
import subprocess
import sys

BATCHES = (64, 128, 256, 512, 1024)
BAR = 1.2


def measure(model: str, batch: int, attend: str, against: str, args) -> list[dict]:
    """The timings of one `vit-jax bench`, none where it ran out of memory."""
    command = [sys.executable, "-m", "vit_jax.cli", "bench", model, "--mode", "train", "--json"]
    command += ["--batch", str(batch), "--image-size", str(args.image_size)]
    command += ["--dtype", "bfloat16", "--attend", attend, "--against", against]
    command += ["--rounds", str(args.rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{model} batch {batch} attend {attend}: {done.stderr.strip()}", flush=True)
        return []
    report = json.loads(done.stdout)
    print(f"{report['date']}, {report['device']}, {report['versions']}", flush=True)
    (result,) = report["results"]
    return result["timings"]


def best_of(model: str, args) -> dict[str, dict]:
    """The fastest timing of each competitor, by name."""
    best: dict[str, dict] = {}
    for batch in args.batches:
        rows = measure(model, batch, "auto", args.against, args)
        rows += [
            {**row, "name": "vit_jax, attend xla"}
            for row in measure(model, batch, "xla", "none", args)
        ]
        for row in rows:
            print(f"  {model} batch {batch:5} {line(row)}", flush=True)
            speed = row["images_per_second"]
            if speed > best.get(row["name"], {"images_per_second": 0})["images_per_second"]:
                best[row["name"]] = {**row, "batch": batch}
    return best


def line(row: dict) -> str:
    memory, share = row["peak_memory"], row["utilisation"]
    return (
        f"{row['name']:20} {1e3 * row['median_seconds']:9,.1f} ms {row['images_per_second']:9,.1f} "
        f"images/s {'' if share is None else f'{share:.0%} of the peak '}"
        f"{'' if memory is None else f'{memory / 1e9:.1f} GB'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["ViT-B_16", "ViT-L_16"])
    parser.add_argument(
        "--batches", type=lambda text: tuple(map(int, text.split(","))), default=BATCHES
    )
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--against", default="timm-compiled")
    args = parser.parse_args()
    for model in args.models:
        best = best_of(model, args)
        for row in best.values():
            print(f"{model} best, batch {row['batch']}: {line(row)}")
        ours = best.get("vit_jax")
        peers = [row for name, row in best.items() if not name.startswith("vit_jax")]
        if ours and peers:
            ratio = ours["images_per_second"] / peers[0]["images_per_second"]
            print(f"{model}: {ratio:.2f} times as fast as {peers[0]['name']}, bar {BAR}")


if __name__ == "__main__":
    main()
