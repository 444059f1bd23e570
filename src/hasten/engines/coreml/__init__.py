"""Apple's Core ML: conversion of ONNX to its programs, and the engine that runs them."""
