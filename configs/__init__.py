"""YAML configs, shipped as package data of d2_plugins.configs."""
