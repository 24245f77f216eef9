"""Hydra imports every module here at each start: keep them light."""
