"""The engines that keep model-written code apart from the machine, behind one port."""
