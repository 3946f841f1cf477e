"""`speakerlens.v1.SpeakerIdentification`: its messages translated, its calls answered."""
