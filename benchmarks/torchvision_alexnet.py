"""The validation error of torchvision's `alexnet` after each epoch, for a comparison with this project's runs.

    pip install torch torchvision
    python benchmarks/torchvision_alexnet.py --data=FOLDER --output=FILE.csv

The recipe is that of torchvision's reference script for `--model alexnet --lr 1e-2`: crops of random size and aspect
(RandomResizedCrop), flips, SGD with momentum 0.9 and weight decay 1e-4; the rate falls to a tenth after each third of
the run (there after 30 of 90 epochs). The validation error is that of the central crop. FOLDER has train/ and val/ with
a folder for each class. Runs on a GPU where there is one. After each epoch the state is saved beside the CSV file; the
same command continues from there.
"""

import argparse
import csv
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms

NORMALIZE = transforms.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
TRAIN = transforms.Compose(
    [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor(), NORMALIZE]
)
LAYOUT = torch.channels_last  # a step takes 0.87 times as long on a CPU, and the results are the same
VALIDATION = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), NORMALIZE])


def error(model, loader, device):
    """Share of the images whose likeliest class is wrong, from 0 to 1.

    `loader` gives images (N, 3, 224, 224) in float32 and labels (N,) in int64.
    """
    model.eval()
    wrong = total = 0
    with torch.no_grad():
        for images, labels in loader:
            wrong += int((model(images.to(device, memory_format=LAYOUT)).argmax(1).cpu() != labels).sum())
            total += len(labels)
    return wrong / total


def main():
    """Trains, and writes a line of the CSV file after each epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with train/ and val/")
    parser.add_argument("--output", required=True, help="CSV file, one line an epoch")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2, help="processes that read images")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train = torchvision.datasets.ImageFolder(f"{options.data}/train", TRAIN)
    if not 1 <= options.batch <= len(train):
        parser.error(f"--batch is {options.batch}; accepted are 1 to {len(train)}, the number of training images.")
    validation = torchvision.datasets.ImageFolder(f"{options.data}/val", VALIDATION)
    workers = {"num_workers": options.workers, "persistent_workers": options.workers > 0}
    batches = DataLoader(train, options.batch, shuffle=True, drop_last=True, **workers)
    validation_batches = DataLoader(validation, options.batch, **workers)
    model = torchvision.models.alexnet(num_classes=len(train.classes)).to(device, memory_format=LAYOUT)
    loss_of = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, max(1, round(options.epochs / 3)))
    state, first = Path(f"{options.output}.state"), 1
    if state.exists():
        saved = torch.load(state, map_location=device)
        for part, values in zip((model, optimizer, schedule), saved["parts"], strict=True):
            part.load_state_dict(values)
        first = saved["epoch"] + 1
        torch.manual_seed(options.seed + first)  # not the random numbers of an unbroken run, but as good
    with open(options.output, "a" if first > 1 else "w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        if first == 1:
            rows.writerow(["epoch", "step", "training loss", "validation top-1 error"])
        for epoch in range(first, options.epochs + 1):
            model.train()
            losses = []
            for images, labels in batches:
                optimizer.zero_grad()
                loss = loss_of(model(images.to(device, memory_format=LAYOUT)), labels.to(device))
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            schedule.step()
            found = error(model, validation_batches, device)
            rows.writerow([epoch, epoch * len(batches), f"{torch.stack(losses).mean():.4f}", f"{found:.4f}"])
            file.flush()
            parts = [part.state_dict() for part in (model, optimizer, schedule)]
            torch.save({"epoch": epoch, "parts": parts}, partial := state.with_suffix(".partial"))
            partial.replace(state)  # so that a stop leaves a whole state
            print(f"epoch {epoch}: validation error {found:.2%}", flush=True)


if __name__ == "__main__":
    main()
