"""The command report: the page of a run."""

from pathlib import Path


def add(commands) -> None:
    """Adds `report` to the commands."""
    report = commands.add_parser("report", help="the page of a run: errors, curves, kernels, pictures, confusion")
    report.add_argument("--workdir", required=True, help="folder of the run")
    report.add_argument("--checkpoint", choices=("last", "best"), default="last", help="of the run")
    report.add_argument("--data_dir", help="instead of the run's own")
    report.add_argument("--output", help="the .html file to write; default: WORKDIR/report.html")
    report.set_defaults(run=run)


def run(options) -> None:
    """Writes the page."""
    output = _checked(options.output)
    from alexnet_jax import convert, data, hosts, loop, report

    data.hide_accelerators_from_tensorflow()
    hosts.keep_compiled()
    hosts.convolve_with_eigen()
    workdir = Path(options.workdir).expanduser()
    config = loop.config_of(workdir)
    if options.data_dir is not None:
        config.data_dir = options.data_dir
    weights = convert.read(workdir, checkpoint=options.checkpoint)
    opened = loop.open_data(config)
    print(f"Wrote: {report.write(workdir, config=config, data=opened, weights=weights, output=output)}")


def _checked(output):
    from alexnet_jax.config import UsageError

    if output is None:
        return None
    path = Path(output).expanduser()
    if path.suffix != ".html":
        raise UsageError(f"--output is {output}; accepted is a name that ends in .html. Give such a name.")
    if not path.parent.is_dir():
        raise UsageError(f"--output is {output}, but there is no folder {path.parent}. Make it, or give another.")
    return path
