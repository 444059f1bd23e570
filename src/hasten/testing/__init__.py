"""What tests share, here and in plug-ins: conformance suites, small models, engines that fail."""
