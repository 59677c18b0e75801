"""The contracts that everything composes from; nothing here knows a method, a network or a data set."""
