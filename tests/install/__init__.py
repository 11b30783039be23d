"""What a wheel does where nothing but its own dependencies is installed: `make test-install`.

No test of pytest's: each part runs in an environment of its own, which has no pytest.
"""
