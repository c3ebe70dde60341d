"""The command `report`: the HTML page about a run."""

from alexnet_jax.cli import common


def add(commands) -> None:
    """Adds `report` to the commands."""
    report = commands.add_parser("report", help="write the page of a run: errors, curves, kernels, images, confusion")
    report.add_argument("--workdir", required=True, help="folder of the run")
    report.add_argument("--checkpoint", choices=("last", "best"), default="last", help="checkpoint of the run")
    report.add_argument("--dataset", help="where the images of a run on folder:PATH are now, if they were moved")
    report.add_argument("--data_dir", help="folder of the data, instead of the run's own")
    report.add_argument("--output", help="the .html file to write; default: WORKDIR/report.html")
    report.set_defaults(run=_report)


def _report(options):
    from alexnet_jax import convert
    from alexnet_jax.files import copies
    from alexnet_jax.inspection import report
    from alexnet_jax.training import setup

    output = options.output and common.output(options.output, ".html")
    common.set_up_devices()
    with copies.opened(options.workdir, "--workdir", "add") as workdir:
        config = setup.config_of(workdir, dataset=options.dataset, data_dir=options.data_dir)
        weights = convert.read(workdir, checkpoint=options.checkpoint)
        opened = setup.open_data(config)
        setup.check_contents(opened, config, workdir)
        path = report.write(workdir, config=config, data=opened, weights=weights, output=output)
        print(copies.named(f"Wrote: {path}"))
