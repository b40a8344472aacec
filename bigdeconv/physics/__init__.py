"""The image formation: what the microscope does to the object."""
