"""The configurations of the app store: how its logs join, and which features a model has."""

from __future__ import annotations

from widedeep.features import FeatureSpec

JOIN_TOML = """\
# From the logs of the store to examples: was the app installed within the hour?

[join]
output = "examples"

[impressions]
path = "impressions/*.parquet"
position = "position"
# The rest is what was served: training looks nothing up again.

[actions]
path = "actions/*.parquet"
kind = "kind"
value = "price"

[[labels]]
name = "label"
kinds = ["install"]
window = "1h"

[split]
by = "time"
fractions = [0.8, 0.1, 0.1]
"""

APP_STORE_TOML = """\
# Wide & Deep for the app store. The wide part remembers which installed app goes with which app
# shown (Cheng et al. 2016, figure 4: user installed app x impression app); the deep part tells
# from embeddings what kind of user likes what kind of app.

[data]
train = "examples/train"
valid = "examples/valid"
test = "examples/test"
label = "label"
group = "request_id"

[features]
numeric = ["user_days", "app_price", "app_rating", "app_days", "app_installs"]
categorical = [
    "app", "user_installed", "app_category", "app_developer",
    "user_country", "user_age", "device", "hour", "position",
]
crossed = [{ parts = ["user_installed", "app"], min_count = 20 }]
# What belongs to the app: given once by the catalogue, not by each request.
item = [
    "app", "app_category", "app_developer", "app_price", "app_rating", "app_days", "app_installs",
    "price_bucket", "rating_bucket", "age_bucket",
]
# The place in the list counts, but is not known before the list is made.
training_only = { position = 1 }
wide = [
    "app", "app_category", "app_developer", "user_country", "user_age", "device", "hour",
    "position", "price_bucket", "rating_bucket", "age_bucket", "user_installed_x_app",
]
deep = [
    "app", "user_installed", "app_category", "app_developer", "user_country", "user_age",
    "device", "hour", "position", "user_days", "app_price", "app_rating", "app_days",
    "app_installs",
]

[features.options]
app = { min_count = 5 }
user_installed = { table = "app", min_count = 5 }

[features.bucketized]
price_bucket = { source = "app_price", boundaries = [0.5, 1.5, 2.5, 4.0, 8.0] }
rating_bucket = { source = "app_rating", boundaries = [3.0, 3.3, 3.6, 3.9, 4.2, 4.5, 4.8] }
age_bucket = { source = "app_days", boundaries = [3, 7, 14, 28, 60, 180, 365] }

[model]
hidden_units = [64, 32]
embedding_dim = 16

[train]
epochs = 2
batch_size = 512
# By the validation log loss of one store, of seed 0.
wide = { optimizer = "ftrl", lr = 0.1, l1 = 1.0 }
deep = { optimizer = "adagrad", lr = 0.05 }
"""


def app_store_spec() -> FeatureSpec:
    """Return the features of the app store."""
    import tomllib

    from widedeep.config import config_from_tables

    return config_from_tables(tomllib.loads(APP_STORE_TOML)).spec
