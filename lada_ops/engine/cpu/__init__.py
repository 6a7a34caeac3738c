"""The CPU engine: encoders packed for the native library, in one call each."""
