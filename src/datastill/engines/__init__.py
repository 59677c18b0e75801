"""The numerical engines that methods and evaluation share."""
