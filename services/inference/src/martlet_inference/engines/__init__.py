"""The engines that can stand behind ``martlet.inference.v1``; ``base.Engine`` says what one must do."""
