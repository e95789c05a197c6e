"""Facts of science, geography and history, and the meaning of words."""

SCIENCE = """
Why does the sky look blue during the day? | Air molecules scatter short blue wavelengths of sunlight far
  more than long red ones, so blue light reaches our eyes from every direction.
Why do we see lightning before we hear thunder? | Light travels almost a million times faster than sound, so
  the flash arrives at once, while the thunder needs about three seconds for every kilometer.
What do plants need for photosynthesis? | Plants need sunlight, water and carbon dioxide. From these they
  make sugar for themselves and release oxygen into the air.
Why does ice float on water? | Water expands when it freezes, so ice is less dense than liquid water and
  floats with roughly a tenth of its volume above the surface.
What causes the seasons on Earth? | The axis of the Earth is tilted by about 23.5 degrees, so each
  hemisphere leans toward the Sun for half of the year and away from it for the other half.
What causes the tides? | The tides are caused mainly by the gravity of the Moon, which pulls the oceans into
  two bulges. The Sun adds a smaller effect.
How does a vaccine protect the body? | A vaccine shows the immune system a harmless form or part of a germ,
  so the body can prepare antibodies and remember the germ before a real infection.
What is the job of red blood cells? | Red blood cells carry oxygen from the lungs to the rest of the body
  and bring some of the carbon dioxide back to be breathed out.
Why does metal feel colder than wood in the same room? | Metal conducts heat away from your hand much faster
  than wood does, so it feels colder even though both have the same temperature.
In one or two sentences, what is DNA? | DNA is a long molecule, shaped like a twisted ladder, that stores
  the instructions a living thing needs to grow, function and reproduce.
How do bats find their way in the dark? | Most bats send out high-pitched calls and listen for the echoes.
  The returning sound tells them how far away an object is and what shape it has.
Why do leaves change color in autumn? | When days grow short, trees stop making green chlorophyll. The
  yellow and orange pigments that were hidden beneath it then become visible.
What is the difference between weather and climate? | Weather is the state of the air at a certain place and
  time, while climate is the average of the weather over many years.
What is a black hole? | A black hole is a region of space where gravity is so strong that nothing, not even
  light, can escape from inside it.
How does a rainbow form? | Sunlight enters raindrops, bends, reflects off the back of each drop and bends
  again as it leaves, which spreads the light into its colors.
Why does bread dough rise? | Yeast feeds on the sugars in the dough and gives off carbon dioxide. The gas is
  trapped in the stretchy gluten and makes the dough swell.
How fast does light travel in a vacuum? | Light travels at about 300,000 kilometers per second in a vacuum,
  fast enough to circle the Earth more than seven times in one second.
What is the largest organ of the human body? | The skin is the largest organ. It protects the body from
  germs, helps to control its temperature and lets us feel touch, heat and pain.
Why do we have leap years? | The Earth needs about 365.24 days to go around the Sun, so an extra day is
  added nearly every four years to keep the calendar in step with the seasons.
What are atoms made of? | An atom has a small nucleus of protons and neutrons, and electrons that move
  around this nucleus.
What does the pH scale measure? | The pH scale measures how acidic or basic a solution is. Values below 7
  are acidic, 7 is neutral, and values above 7 are basic.
Why is the sea salty? | Rain slowly dissolves minerals from rocks, and rivers carry them to the sea. The
  water evaporates again, but the salt stays behind.
How do fish breathe under water? | Fish take in water through the mouth and push it over their gills, where
  oxygen passes from the water into the blood.
Describe the water cycle briefly. | Water evaporates from seas and lakes, rises, cools and condenses into
  clouds, falls as rain or snow, and flows back to the sea through rivers and the ground.
Why do stars seem to twinkle? | Starlight passes through moving layers of warm and cold air, which bend it
  slightly in changing directions, so the star appears to flicker.
How far away is the Moon? | The Moon is about 384,000 kilometers away from the Earth on average, a distance
  that light covers in a little more than one second.
Why do onions make people cry? | Cutting an onion breaks its cells and releases a sulfur gas. The gas
  irritates the eyes, which produce tears to wash it away.
How does a refrigerator keep food cold? | A liquid evaporates in pipes inside the refrigerator and takes up
  heat. A compressor then pumps the vapor to the outside, where the heat is given off.
Which gas makes up most of the air? | Nitrogen makes up about 78 percent of dry air. Oxygen comes second
  with about 21 percent.
What happens during a solar eclipse? | During a solar eclipse the Moon passes between the Earth and the Sun
  and its shadow falls on part of the Earth.
How do bees make honey? | Bees collect nectar, thicken it by passing it from bee to bee and fanning it with
  their wings, and then seal it in wax cells.
Why do we need sleep? | Sleep lets the body repair its tissues and gives the brain time to store memories
  and clear away waste, so that we can think well the next day.
What is friction? | Friction is the force that resists motion when two surfaces rub against each other. It
  lets us walk without slipping, but it also wears machines out.
Why does a volcano erupt? | Melted rock under the ground is lighter than the rock around it and contains
  gas. When the pressure grows too high, it breaks through the surface.
What causes most earthquakes? | Most earthquakes happen when two plates of the Earth's crust that were stuck
  together suddenly slip past each other and release stored energy.
What is a fossil? | A fossil is the preserved remains or trace of a plant or animal that lived long ago,
  such as a bone that turned to stone or a footprint in mud.
Why can a ship made of steel float? | A ship is hollow, so on the whole it is lighter than the same volume
  of water. It sinks only until it has pushed aside water equal to its own weight.
How does a solar panel produce electricity? | Light knocks electrons loose in a layer of silicon, and the
  built-in electric field of the cell pushes them in one direction, which makes a current.
What is the difference between a virus and a bacterium? | A bacterium is a living cell that can multiply by
  itself, while a virus is much smaller and can only multiply inside the cells of a host.
Why do astronauts float in a space station? | The station and the people inside it are falling around the
  Earth together, so nothing presses the astronauts against the floor.
State Newton's third law of motion with an example. | For every action there is an equal and opposite
  reaction. A rocket pushes gas downward, and the gas pushes the rocket upward.
How can you tell the age of a tree that was cut down? | Count the rings in the trunk. In places with
  distinct seasons a tree adds one light and one dark ring each year.
Does sound travel faster in air or in water? | Sound travels faster in water, at about 1,500 meters per
  second, compared with about 340 meters per second in air.
Why does water boil at a lower temperature on a mountain? | The air pressure is lower at high altitude, so
  the bubbles of vapor need less heat to form. Food therefore takes longer to cook there.
What does the ozone layer do? | The ozone layer, high in the atmosphere, absorbs most of the Sun's harmful
  ultraviolet light before it reaches the ground.
How are camels adapted to the desert? | Camels store fat in their humps, lose little water, and have wide
  feet that do not sink into the sand and long lashes that keep the dust out.
Why does sweating cool us down? | Sweat takes heat from the skin as it evaporates, so the body loses warmth
  and its temperature stays in a healthy range.
What are the stages in the life of a butterfly? | A butterfly passes through four stages: egg, caterpillar,
  chrysalis and adult. This change of form is called metamorphosis.
Why does a balloon stick to the wall after you rub it on your hair? | Rubbing moves electrons onto the
  balloon and gives it a negative charge. The charge attracts the wall strongly enough to hold the light
  balloon.
Why does a helium balloon rise? | Helium is much lighter than air, so the balloon with its gas weighs less
  than the air it pushes aside and is lifted up.
How many bones does an adult human have? | An adult human usually has 206 bones. Babies are born with more,
  around 270, and many of these grow together over time.
What do the lungs do? | The lungs take oxygen from the air we breathe in and pass it into the blood, and
  they remove carbon dioxide when we breathe out.
"""

GEOGRAPHY = """
Which is the largest ocean on Earth? | The Pacific Ocean is the largest. It covers about a third of the
  surface of the Earth, more than all the land taken together.
What is the highest mountain in the world above sea level? | Mount Everest, on the border between Nepal and
  China, is the highest mountain. Its summit is about 8,849 meters above sea level.
Name the seven continents. | The seven continents are Africa, Antarctica, Asia, Australia, Europe, North
  America and South America.
Which desert is the largest hot desert in the world? | The Sahara in northern Africa is the largest hot
  desert. It is about as large as the United States.
Through which countries does the Amazon River flow? | The main course of the Amazon runs through Peru and
  Brazil and forms a short part of Colombia's border before it reaches the Atlantic Ocean.
Why is Iceland famous for hot springs? | Iceland lies on the border between two plates of the Earth's crust,
  where hot rock comes close to the surface and heats the water in the ground.
What separates Europe from Africa at the narrowest point? | The Strait of Gibraltar separates Spain from
  Morocco. At its narrowest point it is only about 14 kilometers wide.
Which country has the largest area? | Russia is the largest country by area. It covers more than 17 million
  square kilometers and stretches over eleven time zones.
What is the smallest country in the world? | Vatican City is the smallest country. It lies inside Rome and
  covers less than half a square kilometer.
What is a peninsula? Give an example. | A peninsula is a piece of land with water on most of its sides.
  Italy, which reaches into the Mediterranean Sea, is a well-known example.
What is the equator? | The equator is an imaginary line around the middle of the Earth, at equal distance
  from both poles. It divides the globe into two hemispheres.
Which lake is the deepest in the world? | Lake Baikal in Siberia is the deepest lake. It reaches a depth of
  more than 1,600 meters and holds about a fifth of the world's fresh surface water.
Why is the Dead Sea so salty? | The Dead Sea has no outlet, so water leaves it only by evaporation. The
  minerals that flow in with the rivers stay behind and build up.
What does the Panama Canal connect? | The Panama Canal connects the Atlantic Ocean with the Pacific Ocean,
  so that ships need not travel around the southern tip of South America.
Where is the Great Barrier Reef? | The Great Barrier Reef lies in the Coral Sea, off the northeast coast of
  Australia. It is the largest system of coral reefs in the world.
Which city lies on two continents? | Istanbul lies on two continents. The Bosporus strait divides the city
  into a European part and an Asian part.
What is the longest mountain range on land? | The Andes in South America form the longest mountain range on
  land. They run for about 7,000 kilometers along the western coast.
Why do deserts get cold at night? | Dry air and clear skies hold little heat. After sunset the sand quickly
  gives its warmth off into space, so the temperature drops sharply.
What is a delta in geography? | A delta is a flat area of land at the mouth of a river, built from the sand
  and mud that the river drops as it slows down.
Which African river flows north into the Mediterranean Sea? | The Nile flows north through Uganda, South
  Sudan, Sudan and Egypt, and enters the Mediterranean Sea in a broad delta.
What is the difference between latitude and longitude? | Latitude tells how far a place lies north or south
  of the equator, and longitude tells how far it lies east or west of Greenwich.
Which two countries share the longest land border? | Canada and the United States share the longest border,
  nearly 8,900 kilometers including the border with Alaska.
What is special about the location of Quito? | Quito, the capital of Ecuador, lies almost on the equator,
  yet its climate is mild because the city stands about 2,850 meters above sea level.
Why are there so many windmills in the Netherlands? | Much of the Netherlands lies below sea level. For
  centuries windmills pumped water out of the low fields to keep them dry.
What is the Ring of Fire? | The Ring of Fire is a belt around the Pacific Ocean with many volcanoes and
  earthquakes, where plates of the Earth's crust meet.
What is a time zone? | A time zone is a region that uses the same clock time. There are about 24 of them
  because the Earth turns once around in 24 hours.
Which sea lies between Italy and Croatia? | The Adriatic Sea lies between Italy and Croatia. It is a
  northern arm of the Mediterranean Sea.
Why does it rarely rain in the Atacama Desert? | The Andes block moist air from the east, and a cold ocean
  current in the west keeps the air dry, so the Atacama is one of the driest places on Earth.
What is permafrost? | Permafrost is ground that stays frozen for at least two years in a row. It is found in
  cold regions such as Siberia and northern Canada.
Which island is the largest in the world? | Greenland is the largest island in the world. About four fifths
  of it are covered by a thick sheet of ice.
What is a fjord? | A fjord is a long, narrow inlet of the sea between steep cliffs, carved out by a glacier.
  Norway is famous for its fjords.
Which country is known as the Land of the Rising Sun? | Japan is known as the Land of the Rising Sun. Its
  name in Japanese, Nihon, means the origin of the sun.
"""

HISTORY = """
Who was the first person to walk on the Moon? | Neil Armstrong was the first person to walk on the Moon. He
  stepped onto its surface on July 20, 1969, during the Apollo 11 mission.
When did the Berlin Wall fall? | The Berlin Wall fell on November 9, 1989. Germany was reunited less than a
  year later, in October 1990.
What was the Silk Road? | The Silk Road was a network of trade routes between China and the Mediterranean.
  Merchants carried silk, spices, paper and also ideas along it.
Who invented the movable-type printing press in Europe? | Johannes Gutenberg of Mainz introduced it around
  1450. Books became cheaper, and knowledge spread faster than ever before.
What was the Rosetta Stone used for? | The Rosetta Stone carries the same text in three scripts. Because one
  of them is Greek, scholars could use it to read Egyptian hieroglyphs.
Why did the Romans build aqueducts? | The Romans built aqueducts to bring clean water from distant springs
  to their cities, where it supplied fountains, baths and some houses.
When did the First World War begin and end? | The First World War began in the summer of 1914 and ended with
  an armistice on November 11, 1918.
Who was Marie Curie? | Marie Curie was a physicist and chemist, born in Warsaw, who studied radioactivity.
  She won Nobel Prizes in physics and in chemistry.
What was the Industrial Revolution? | The Industrial Revolution was the change from handwork to machines and
  factories. It began in Britain in the eighteenth century.
What did the Magna Carta of 1215 establish? | The Magna Carta limited the power of the English king. It
  stated that even a ruler must respect the law and the rights of free men.
Who painted the Mona Lisa? | Leonardo da Vinci painted the Mona Lisa in the early sixteenth century. Today
  it hangs in the Louvre in Paris.
What happened to the city of Pompeii? | Pompeii was buried under ash when Mount Vesuvius erupted in the year
  79. The ash preserved houses, paintings and everyday objects.
Who was Nelson Mandela? | Nelson Mandela fought against racial segregation in South Africa. After 27 years
  in prison he became the country's first Black president in 1994.
Why was the Great Wall of China built? | Chinese rulers built walls over many centuries to protect their
  northern borders against raids and to control trade and travel.
What was the Renaissance? | The Renaissance was a period, beginning in Italy in the fourteenth century, in
  which artists and scholars took new interest in ancient learning.
Who wrote the plays Hamlet and Macbeth? | William Shakespeare wrote both plays. He lived from 1564 to 1616
  and worked as an actor and playwright in London.
Which event started the French Revolution in July 1789? | The storming of the Bastille, a royal prison in
  Paris, on July 14, 1789, is seen as the start of the French Revolution.
What was the Library of Alexandria? | It was a famous center of learning in ancient Egypt, where scholars
  collected and copied scrolls from the whole Greek-speaking world.
Who developed the theory of evolution by natural selection? | Charles Darwin presented the theory in 1859.
  Alfred Russel Wallace had reached the same idea independently.
What did Alexander Fleming discover in 1928? | Alexander Fleming noticed that a mold killed the bacteria in
  one of his dishes. From this mold came penicillin, the first widely used antibiotic.
When did the Titanic sink, and why? | The Titanic sank in the early morning of April 15, 1912, after it
  struck an iceberg in the North Atlantic on its first voyage.
What was the Cold War? | The Cold War was the long rivalry between the United States and the Soviet Union
  after 1945. The two powers competed without fighting each other directly.
Who were the Vikings? | The Vikings were seafarers from Scandinavia. Between about 800 and 1050 they traded,
  raided and settled along the coasts of Europe and beyond.
Who made the first powered airplane flight? | Orville and Wilbur Wright made the first powered flight on
  December 17, 1903. The shortest of that day lasted only twelve seconds.
What is hieroglyphic writing? | Hieroglyphic writing is a script of ancient Egypt in which small pictures
  stand for sounds, words or ideas.
What was the purpose of the Olympic Games in ancient Greece? | The ancient games were held every four years
  at Olympia in honor of Zeus. Free Greek men competed in running, wrestling and other sports.
Who was Ada Lovelace? | Ada Lovelace was an English mathematician. In 1843 she published a method for
  Charles Babbage's planned machine that is often called the first computer program.
When was the United Nations founded? | The United Nations was founded in October 1945, after the Second
  World War, to keep peace and to help countries work together.
What did Galileo see when he looked at Jupiter? | In 1610 Galileo saw four moons that circle Jupiter. This
  showed that not everything in the sky moves around the Earth.
Why did people in the Middle Ages build castles? | Castles protected lords and their people from attack, and
  they showed everyone in the area who held the power.
Who led India's nonviolent movement for independence? | Mahatma Gandhi led the movement with marches,
  boycotts and peaceful refusal to obey unjust laws. India became independent in 1947.
Which people built the city of Machu Picchu? | The Inca built Machu Picchu in the fifteenth century, high in
  the Andes of present-day Peru.
"""

# country, capital, continent, main language, currency
COUNTRIES = """
France | Paris | Europe | French | euro
Japan | Tokyo | Asia | Japanese | yen
Brazil | Brasília | South America | Portuguese | real
Egypt | Cairo | Africa | Arabic | Egyptian pound
Poland | Warsaw | Europe | Polish | zloty
Mexico | Mexico City | North America | Spanish | Mexican peso
Thailand | Bangkok | Asia | Thai | baht
Hungary | Budapest | Europe | Hungarian | forint
Sweden | Stockholm | Europe | Swedish | Swedish krona
Turkey | Ankara | Asia and Europe | Turkish | lira
Argentina | Buenos Aires | South America | Spanish | Argentine peso
Vietnam | Hanoi | Asia | Vietnamese | dong
Greece | Athens | Europe | Greek | euro
Denmark | Copenhagen | Europe | Danish | Danish krone
Morocco | Rabat | Africa | Arabic | dirham
Portugal | Lisbon | Europe | Portuguese | euro
Angola | Luanda | Africa | Portuguese | kwanza
Mongolia | Ulaanbaatar | Asia | Mongolian | tugrik
Colombia | Bogotá | South America | Spanish | Colombian peso
Iceland | Reykjavík | Europe | Icelandic | Icelandic króna
"""

# element, symbol, atomic number, what it is known for
ELEMENTS = """
hydrogen | H | 1 | It is the lightest element and the main fuel of the Sun
helium | He | 2 | It is a light gas that does not burn and is used to fill balloons
carbon | C | 6 | It is found in all living things and in both diamond and coal
nitrogen | N | 7 | It makes up most of the air we breathe
oxygen | O | 8 | People and animals need it to breathe, and fire needs it to burn
neon | Ne | 10 | It glows orange-red in advertising signs
sodium | Na | 11 | It is a soft metal and, together with chlorine, forms table salt
aluminum | Al | 13 | It is a light metal used for cans, foil and airplanes
silicon | Si | 14 | It is the material of computer chips and a part of sand
calcium | Ca | 20 | It makes bones and teeth strong
iron | Fe | 26 | It is the main part of steel and it rusts in damp air
copper | Cu | 29 | It conducts electricity well and is used for wires
silver | Ag | 47 | It is a precious metal and the best conductor of electricity
tin | Sn | 50 | It is mixed with copper to make bronze
gold | Au | 79 | It is a precious yellow metal that does not tarnish
mercury | Hg | 80 | It is a metal that is liquid at room temperature
lead | Pb | 82 | It is a heavy, soft and poisonous metal
"""

PLANETS = """
Mercury | the first | It is the smallest planet and needs only 88 days for one trip around the Sun. It has
  almost no air, so its nights are bitterly cold
Venus | the second | Its thick clouds trap heat and make it the hottest planet. It shines brightly in the
  evening or morning sky
Earth | the third | It is the only place known to have life. About seven tenths of its surface are covered
  with water
Mars | the fourth | Rust in its soil gives it a red color. It has two small moons and the highest volcano of
  all the planets
Jupiter | the fifth | It is the largest planet and has a great red storm. Dozens of moons circle it, and
  four of them can be seen with binoculars
Saturn | the sixth | It is famous for its bright rings of ice and rock. It consists mostly of hydrogen and
  helium and is less dense than water
Uranus | the seventh | It is tilted so far that it seems to roll along its path. It needs about 84 years for
  one trip around the Sun
Neptune | the eighth | It is a cold blue planet with very fast winds. It was found in 1846 after astronomers
  had calculated its position
"""

DEFINITIONS = """
inflation | Inflation is a general rise in prices over time, so that the same amount of money buys less than
  before. Example: High inflation made the weekly shopping more expensive.
empathy | Empathy is the ability to understand and share what another person feels, as if you stood in that
  person's place. Example: The nurse listened with patience and empathy.
biodiversity | Biodiversity is the variety of living things in an area, from plants and animals to fungi and
  microbes. Example: Hedges between the fields increase biodiversity.
algorithm | An algorithm is a finite list of clear steps that solves a problem, much like a recipe for a
  computer. Example: A search algorithm finds a name in a long list.
democracy | Democracy is a form of government in which the people decide, either directly or by choosing
  their representatives in free elections. Example: In a democracy a government can be voted out.
hypothesis | A hypothesis is a possible explanation for something observed, stated so that it can be tested
  by experiment. Example: The experiment confirmed her hypothesis.
budget | A budget is a plan that compares expected income with expected spending for a certain period.
  Example: After the repair there was little left in our budget.
metaphor | A metaphor describes one thing as if it were another, as in the sentence "Time is a thief."
photosynthesis | Photosynthesis is the process by which green plants use sunlight to turn water and carbon
  dioxide into sugar and oxygen. Example: Without light, photosynthesis stops.
drought | A drought is a long period with much less rain than usual, which leaves soil, rivers and wells
  dry. Example: The drought ruined half of the corn harvest.
compost | Compost is a dark, crumbly material made from decayed plants and kitchen scraps that feeds the
  soil in a garden. Example: We mixed compost into the flower beds.
prototype | A prototype is an early model of a product, built in order to test an idea before the real thing
  is made. Example: The first prototype of the chair was made of cardboard.
deadline | A deadline is the date or time by which a task must be finished. Example: She handed in her essay
  an hour before the deadline.
nocturnal | Nocturnal describes animals that are active at night and rest during the day, such as owls and
  most bats.
monopoly | A monopoly exists when a single company is the only seller of a product and can therefore set the
  price alone. Example: The railway had a monopoly on travel to the coast.
encryption | Encryption turns a message into unreadable code, so that only someone who has the right key can
  read it. Example: Encryption protects the messages on your phone.
migration | Migration is the regular movement of animals or people from one region to another, often with
  the seasons. Example: The autumn migration takes the storks to Africa.
nostalgia | Nostalgia is a warm and slightly sad longing for a happy time in the past. Example: The old
  songs filled him with nostalgia.
renewable energy | Renewable energy comes from sources that nature refills, such as wind, sunlight and
  flowing water. Example: The island gets all its power from renewable energy.
bandwidth | Bandwidth is the amount of data that a connection can carry in a given time, usually measured in
  bits per second. Example: Video calls need more bandwidth than emails.
compromise | A compromise is an agreement in which each side gives up a part of what it wanted. Example: As
  a compromise they spent one week at the sea and one in the mountains.
hibernation | Hibernation is a deep winter rest in which an animal lowers its temperature and heartbeat to
  save energy. Example: The hedgehog wakes from hibernation in spring.
mortgage | A mortgage is a loan for buying a home, with the home itself serving as security for the lender.
  Example: They will pay off their mortgage in twenty years.
satellite | A satellite is an object that circles a planet. It can be natural, like the Moon, or built by
  people.
procrastination | Procrastination is the habit of putting off a task that should be done now, often by doing
  something more pleasant. Example: Procrastination cost him the last week before the exam.
ecosystem | An ecosystem is a community of living things together with the soil, water and air they depend
  on. Example: A pond is a small ecosystem.
irony | Irony is a contrast between what is said or expected and what is really meant or happens. Example:
  It was an irony that the fire station burned down.
probability | Probability is a number between 0 and 1 that says how likely it is that something will happen.
  Example: The probability of rolling a six is one in six.
patent | A patent gives an inventor the sole right to make and sell an invention for a limited number of
  years. Example: She holds a patent on a silent fan.
erosion | Erosion is the slow wearing away of soil and rock by water, wind or ice. Example: Tree roots
  protect the slope from erosion.
stamina | Stamina is the strength to keep up a physical or mental effort for a long time. Example: Long
  walks have improved his stamina.
open source software | Open source software is software whose source code anyone may read, change and share
  under its license.
etiquette | Etiquette is the set of customs for polite behavior in a group or on a certain occasion.
  Example: Dinner etiquette differs from country to country.
interest on a loan | Interest is the price paid for borrowing money, usually a yearly percentage of the
  amount that is owed.
"""
