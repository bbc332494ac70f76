"""What pyproject.toml cannot say: configurations stay in `configs/`, and go into the wheel too."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigurations(build_py):
    """Build the packages, and `simulations/configs` from the folder of that name beside them."""

    def run(self) -> None:
        """Copy them; an editable install finds them in the checkout."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, "simulations", "configs")
        target.mkdir(parents=True, exist_ok=True)
        for source in sorted(Path(__file__).parent.joinpath("configs").glob("*.toml")):
            self.copy_file(str(source), str(target / source.name))


setup(cmdclass={"build_py": BuildWithConfigurations})
