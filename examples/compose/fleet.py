"""What the workers of the fleet do: print what their devices report."""

import srup


def setup(server: srup.Server) -> None:
    """Register the handlers of one partition; ``srup server --app fleet:setup`` calls this for each."""

    @server.on_data("temperature", "double")
    def heard(device: int, name: str, value: float) -> None:
        print(f"{device:x}: {value} degrees", flush=True)
