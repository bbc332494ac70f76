"""Laws that parts keep; :mod:`fl_split.testing` hands the checks on."""

from fl_split.checks.channels import check_channel
from fl_split.checks.codecs import check_codec
from fl_split.checks.exits import check_exits
from fl_split.checks.models import check_model
from fl_split.checks.tokens import check_tokens

__all__ = ["check_channel", "check_codec", "check_exits", "check_model", "check_tokens"]
