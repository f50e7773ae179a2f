"""The AR prior inside the served model's own path, as a study: does it help?"""
