"""The command that shows what this installation runs on: info."""

from convnext.cli.common import Device, Json, add_command, print_json


@add_command("Look up", "convnext info", "convnext info --json")
def info(device: Device = None, as_json: Json = False) -> None:
    """Show versions, devices, and which fast operators run and why."""
    from convnext import ops
    from convnext.distributed import pick_device
    from convnext.models.optimize.optimize import by_default
    from convnext.training.folder.environment import environment

    found, operators = environment(pick_device(device)), ops.status()
    if as_json:
        shown = {"versions": found["versions"], "hardware": found["hardware"], "system": found["system"], "commit": found["commit"]}
        print_json(shown | {"operators": operators, "optimize": by_default()})
        return
    for name, value in [*found["versions"].items(), *found["hardware"].items()]:
        print(f"{name:12} {value}")
    print(f"{'system':12} {found['system']}")
    print("\noperators")
    before = None
    for name, operator in operators.items():
        print(f"  {name:30} {operator['runs']:9} {operator['why'] if operator['why'] != before else 'as above'}")
        before = operator["why"]
    print(f"\n--optimize auto  {by_default()}")
