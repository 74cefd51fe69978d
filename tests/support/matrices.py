"""Matrices of linear maps, written out from what they do to the unit vectors."""

import math

import torch


def matrix_of(function, shape):
    size = math.prod(shape)
    basis = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
    return function(basis).detach().flatten(1).T


def matrix_norm(matrix, norm):
    return float(torch.linalg.matrix_norm(matrix, ord=float(norm)))
