"""The tasks that a race can name. Nothing is downloaded: the digits are scikit-learn's, the text is CPython's."""

from optchain.cli.race.tasks.chars import chars
from optchain.cli.race.tasks.digits import autoencoder, conv, digits
from optchain.cli.race.tasks.skip_gram import skip_gram

TASKS = {"digits": digits, "conv": conv, "chars": chars, "autoencoder": autoencoder, "skip-gram": skip_gram}
