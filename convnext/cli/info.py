"""The command that tells what this installation runs on: info."""

from convnext.cli.common import Device, Json, app, print_json


@app.command()
def info(device: Device = None, as_json: Json = False) -> None:
    """Tell versions, devices, and which fast operators are on and why. Builds them if they are not yet."""
    from convnext import ops
    from convnext.distributed import pick_device
    from convnext.training.run_folder import environment

    place = environment(pick_device(device))
    found = {key: place[key] for key in ("versions", "hardware", "system", "commit")} | {"operators": ops.status()}
    if as_json:
        print_json(found)
        return
    for part in ("versions", "hardware"):
        for name, value in found[part].items():
            print(f"{name:12} {value}")
    print(f"{'system':12} {found['system']}")
    print("\noperators")
    for name, operator in found["operators"].items():
        print(f"  {name:30} {operator['runs']:9} {operator['why']}")
