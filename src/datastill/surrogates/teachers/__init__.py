"""Trained networks that synthetic images are recovered from and labeled by."""

from datastill.surrogates.teachers.sources import Brought, Squeeze, TeacherSource, as_teacher
from datastill.surrogates.teachers.teacher import Teacher, load_teacher

__all__ = ["Brought", "Squeeze", "Teacher", "TeacherSource", "as_teacher", "load_teacher"]
