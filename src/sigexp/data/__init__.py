"""Where real signals come from: photographs, digits, files of the classic sets, a user's own folder."""
