"""Everyday writing and advice: emails, recipes, plans, verse, tips, explanations for children, riddles."""

EMAILS = """
Write a short email asking a colleague to move a meeting from Tuesday to Thursday. | Hi Sam, / Could we move
  our Tuesday meeting to Thursday at the same time? A deadline has come up on my side. / Thanks, / Alex
Write a two-line email thanking a teacher for a letter of recommendation. | Dear Ms. Ortiz, / Thank you so
  much for your kind letter. It helped me win the scholarship! / Best regards, Nina
Write a brief email to a landlord about a leaking tap. | Dear Mr. Hall, / The kitchen tap has been leaking
  since Monday. Could you please send a plumber this week? / Kind regards, / Priya Shah
Write an out-of-office reply for a week of vacation. | Thank you for your message. I am on vacation until
  Monday and will answer then. For urgent matters please contact office@example.com.
Write a short email to decline an invitation politely. | Dear Julia, / Thank you for inviting me. Sadly I am
  away that weekend, but I wish you a wonderful party. / Warmly, Ben
Write a friendly reminder about an unpaid invoice. | Dear Mr. Chen, / Our invoice from May 3 is still open.
  Perhaps it escaped your notice; could you settle it by Friday? / Best regards, Accounts
Write a short email inviting the team to a farewell lunch. | Hi all, / Maria leaves us on Friday. Let's say
  goodbye over lunch at noon in the garden café. Please tell me if you can come. / Leo
Write a subject line and one sentence asking for feedback on a draft. | Subject: Your thoughts on my draft /
  Could you read the attached two pages and tell me by Wednesday what is unclear?
Write a short email telling customers that the store is moving. | Dear customers, / From June 1 you will
  find us at 12 Oak Street. We look forward to welcoming you there! / Your Corner Books team
Write a short message to a neighbor apologizing for loud music. | Hi Carol, / I am sorry about the loud
  music last night. It will not happen again, and I owe you a cake. / Dan
Write an email to a hotel asking about parking and breakfast. | Hello, / We arrive on July 4. Is parking
  included in the price, and from what time is breakfast served? / Thank you, Emma Cole
Write a brief email to report a lost library card. | Dear library team, / I have lost my card, number 2045.
  Please block it and tell me how to get a new one. / Regards, Tim Wood
Write a short note to wish a coworker a quick recovery. | Dear Rosa, / We miss you at the office. Take all
  the time you need and get well soon! / The whole team
Write a sentence to open a cover letter for a job as a gardener. | With eight years of experience in public
  parks and a love of native plants, I am excited to apply for the position of gardener.
Write a short email asking a shop to exchange a pair of shoes. | Hello, / The shoes from order 118 are too
  small. Could I exchange them for size 42? / Many thanks, / Olga Petrova
"""

RECIPES = """
scrambled eggs | 1. Whisk three eggs with a pinch of salt. / 2. Melt butter in a pan over low heat. / 3. Add
  the eggs and stir gently until they are soft and creamy.
a simple tomato salad | 1. Cut four ripe tomatoes into wedges. / 2. Add sliced onion and basil. / 3. Dress
  with olive oil, vinegar, salt and pepper.
pancakes | 1. Mix a cup of flour, a cup of milk, one egg and some salt. / 2. Pour a ladle of batter into a
  hot pan. / 3. Flip when bubbles appear.
vegetable soup | 1. Fry a chopped onion in oil. / 2. Add diced carrots, potatoes and celery. / 3. Cover with
  broth and simmer for 25 minutes.
lemonade | 1. Dissolve half a cup of sugar in hot water. / 2. Add the juice of four lemons. / 3. Fill up
  with a liter of cold water and ice.
garlic bread | 1. Mix soft butter with crushed garlic and parsley. / 2. Spread it on slices of baguette. /
  3. Bake for ten minutes until golden.
oatmeal | 1. Bring one cup of milk to a simmer. / 2. Stir in half a cup of oats. / 3. Cook for five minutes
  and top with fruit.
baked potatoes | 1. Prick the potatoes with a fork. / 2. Rub them with oil and salt. / 3. Bake at 200 °C for
  about an hour.
a cheese sandwich | 1. Butter two slices of bread. / 2. Add cheese and tomato. / 3. Grill in a pan until the
  cheese melts.
fruit salad | 1. Dice an apple, a banana and an orange. / 2. Add a handful of grapes. / 3. Toss with lemon
  juice and a little honey.
rice | 1. Rinse one cup of rice. / 2. Add two cups of water and some salt. / 3. Simmer under a lid for 15
  minutes, then let it rest.
hummus | 1. Drain a can of chickpeas. / 2. Blend with tahini, lemon juice, garlic and salt. / 3. Add water
  until smooth.
iced tea | 1. Steep four tea bags in hot water for five minutes. / 2. Stir in honey and lemon. / 3. Cool and
  serve over ice.
pasta with pesto | 1. Cook the pasta in salted water. / 2. Save a little of the water. / 3. Mix pasta, pesto
  and a spoonful of that water.
"""
RECIPES_ASKED = (
    "Give a short recipe for {}.",
    "How do I make {}? List the steps.",
    "Explain in three steps how to prepare {}.",
)

PLANS = """
a birthday party for a child | 1. Choose a date and a theme. / 2. Invite the guests. / 3. Order a cake. / 4.
  Prepare games and music. / 5. Set up the room an hour before.
moving to a new apartment | 1. Sort out things you do not need. / 2. Pack one room at a time and label the
  boxes. / 3. Hire a van. / 4. Change your address.
learning a new language | 1. Set a small daily goal. / 2. Learn the most common words. / 3. Listen to simple
  podcasts. / 4. Speak with a partner every week.
a weekend hiking trip | 1. Pick a trail that fits your fitness. / 2. Check the weather. / 3. Pack water,
  food and a map. / 4. Tell someone your route.
an exam in two weeks | 1. List all topics. / 2. Study two topics a day in the first week. / 3. Solve old
  exams. / 4. Rest the evening before.
a small vegetable garden | 1. Choose a sunny spot. / 2. Loosen the soil and add compost. / 3. Sow easy
  plants such as beans. / 4. Water in the morning.
saving money for a trip | 1. Work out what the trip costs. / 2. Divide it by the months left. / 3. Transfer
  that amount each payday. / 4. Cut one regular expense.
a job interview | 1. Read about the company. / 2. Practice answers to common questions. / 3. Prepare two
  questions of your own. / 4. Arrive ten minutes early.
reading more books | 1. Keep a book by your bed. / 2. Read ten pages every evening. / 3. Put the phone in
  another room. / 4. Note what you have finished.
launching a small blog | 1. Choose one topic. / 2. Pick a simple platform. / 3. Write five posts in advance.
  / 4. Publish once a week and share the link.
a productive morning | 1. Get up at the same time every day. / 2. Drink a glass of water. / 3. Do the
  hardest task first. / 4. Check messages later.
cleaning a messy room | 1. Open the window. / 2. Throw away trash. / 3. Put clothes in the laundry. / 4.
  Clear the surfaces. / 5. Vacuum the floor.
training for a first 5 km run | 1. Start with walking and short jogs. / 2. Train three times a week. / 3.
  Run a little longer each week. / 4. Rest in between.
adopting a dog | 1. Check that your time and home suit a dog. / 2. Visit a shelter. / 3. Buy food, a bed and
  a leash. / 4. Book a vet.
a neighborhood cleanup | 1. Choose a Saturday. / 2. Ask the city for bags and gloves. / 3. Put up posters. /
  4. Give each group a street.
"""
PLANS_ASKED = ("Make a short plan for {}.", "I need a checklist for {}.", "Outline the main steps for {}.")

VERSE = """
Write a haiku about autumn. | A red leaf lets go, / drifting past the quiet bench / where we said goodbye.
Write a haiku about the sea. | Waves erase my name, / the gull above laughs at me: / nothing here is mine.
Write a haiku about a cat. | On the windowsill / a small gray king surveys birds, / yawns, and sleeps again.
Write a haiku about rain. | Soft drums on the roof, / the garden drinks in silence; / I put down my book.
Write a haiku about winter. | Snow has closed the road. / Smoke climbs from a single house; / someone bakes
  their bread.
Write a haiku about coffee. | Dark and bitter friend, / you pull the morning upright / one slow sip a time.
Write a short rhyming poem about the moon. | The moon hangs low above the hill, / the dogs are hushed, the
  wind is still; / it paints a road across the bay / for boats that dream of yesterday.
Write a four-line poem about friendship. | You carried half of what I bore, / you left a light beside your
  door, / and when I lost my way at night / I found you holding up that light.
Write a short poem about a train journey. | Fields roll by in green and gold, / a stranger's tale is softly
  told; / the wheels keep time, the sky grows wide, / and home is on the other side.
Write a two-line verse for a birthday card. | May every candle on your cake be bright, / and every wish you
  make take flight tonight!
Write a couplet about spring. | The ice has left the river's edge to sing, / and every branch is arguing for
  spring.
Write a limerick about a baker. | A baker from Dover named Lee / put salt where the sugar should be; / the
  cake was so grim / that even the slim / asked politely for crackers and tea.
Write a short poem about a lighthouse. | I stand where rock and water meet, / with storms for guests about
  my feet; / I cannot move, I cannot roam, / but every night I guide you home.
Write a haiku about a library. | Ten thousand voices / wait in rows without a sound / for one open hand.
Write four lines of verse about homework. | My homework sat and looked at me, / I looked at it from half
  past three; / at nine we both agreed to start, / and neither one was very smart.
Write a haiku about stars. | Old light, just arrived: / the lamp that sent it may be / cold for ages now.
Write a short poem about bread. | Flour, water, salt and time, / patient hands and yeast to climb; / warm
  the kitchen, sweet the air, / break the loaf, for bread's to share.
"""

TRAVEL = """
What should I pack for a rainy weekend in London? | Take a light waterproof jacket, a small umbrella,
  comfortable shoes that dry fast and a warm layer for the evenings.
How can I save money when traveling by train? | Book early, travel outside rush hours, compare slow trains
  with fast ones, and check whether a rail pass pays off.
Give a tip for dealing with jet lag. | Switch to local time at once, spend the first day outdoors in
  daylight, and avoid long naps and heavy meals.
What is a good way to see a city on a small budget? | Walk or rent a bicycle, visit museums on free days,
  eat lunch at markets, and use a day pass for buses.
How do I keep my valuables safe while traveling? | Leave what you do not need at home, keep cards and cash
  in separate places, and close your bag in crowds.
When is the best time to visit Japan? | Spring and autumn are ideal: late March to April for cherry blossoms
  and November for colorful leaves and mild days.
How can I make a long flight more comfortable? | Choose an aisle seat, drink plenty of water, get up every
  hour, and bring a neck pillow and earplugs.
What should I do if I lose my passport abroad? | Report the loss to the local police and contact your
  embassy, which can give you an emergency travel document.
How can tourists behave respectfully in a temple? | Cover shoulders and knees, take off shoes where it is
  asked, speak quietly, and do not photograph people at prayer.
Suggest a one-day plan for visiting a seaside town. | Stroll along the beach in the morning, eat fresh fish
  at the harbor, visit the lighthouse and watch the sunset from the pier.
Is it better to carry cash or a card on a trip? | Carry both: a card for hotels and larger shops, and a
  little local cash for markets, tips and buses.
What are the advantages of a hostel over a hotel? | A hostel is cheaper, usually has a shared kitchen, and
  makes it easy to meet other travelers.
"""

HEALTH = """
How can I fall asleep more easily? | Go to bed at the same time each night, keep the room dark and cool, and
  put screens away an hour before.
Why is drinking water important? | Water carries nutrients, helps the kidneys remove waste and keeps the
  body temperature steady. Thirst and dark urine are signs that you need more.
Name three ways to protect your eyes when working at a computer. | Look into the distance every twenty
  minutes, place the screen an arm's length away, and use good light without glare.
How can I sit less during the day? | Stand up for phone calls, take the stairs, walk to a colleague instead
  of writing, and set a timer for short breaks.
What does a balanced breakfast contain? | A balanced breakfast has whole grains for energy, some protein
  such as yogurt or eggs, and fruit for vitamins and fiber.
How can I lower stress before a presentation? | Practice aloud twice, breathe slowly for a minute, and
  remind yourself that the audience wants you to succeed.
Why should I wash my hands before eating? | Hands pick up germs from everything they touch. Soap and water
  remove most of them before they can reach your mouth.
How often should I brush my teeth? | Brush twice a day for two minutes with fluoride toothpaste, and clean
  between the teeth once a day.
What helps against a mild cold? | Rest, drink warm fluids, and breathe moist air. See a doctor if the fever
  is high or lasts for several days.
What are the benefits of walking every day? | Daily walking strengthens the heart, keeps joints flexible,
  improves mood and helps you keep a healthy weight.
How can I eat less sugar? | Drink water instead of soda, choose plain yogurt with fruit, read labels, and
  cut down step by step so your taste adapts.
What should I do for a small burn? | Cool the burn under running water for about twenty minutes and cover it
  loosely. Do not put ice or butter on it.
"""

CHILDREN = """
what the internet is | The internet is like a giant web of roads between computers. Messages, pictures and
  games travel along it to reach you.
why we pay taxes | Everybody puts some money into one big piggy bank, and it is used for things we share,
  such as schools, roads and firefighters.
how airplanes fly | The wings push air down as the plane rushes forward, and the air pushes the plane up, a
  bit like your hand held out of a car window.
what a battery does | A battery is a little lunch box full of energy. When you switch on a toy, the energy
  flows out and makes it move.
why the moon changes shape | The Moon is always a ball, but the Sun lights only one side. As the Moon goes
  around us, we see more or less of that bright side.
what money is for | Money is something everyone agrees to accept, so you can trade your work for bread
  without finding a baker who needs your help.
how seeds grow | A seed is a sleeping baby plant with a snack inside. Water wakes it up; it grows a root
  down and a shoot up to the light.
what gravity is | Gravity is an invisible pull that big things like the Earth have. It brings your ball back
  down when you throw it up.
why we sneeze | When dust tickles your nose, your body wants it out, so it blows a strong puff of air to
  clean the inside.
what a computer program is | A program is a list of tiny steps for a computer, like a recipe. The computer
  follows each step exactly and never gets bored.
how a phone call works | The phone turns your voice into a signal, sends it through the air like invisible
  light, and the other phone turns it back into your voice.
why bread gets moldy | Tiny living things called mold float in the air. When they land on damp bread, they
  eat it and grow into fuzzy spots.
what recycling means | Recycling means giving old things a new life. Yesterday's bottle can be melted and
  become a new bottle instead of trash.
why people speak different languages | Long ago groups of people lived far apart and each made up its own
  words. Over time the words became different languages.
how the heart works | Your heart is a pump about as big as your fist. It squeezes all day long to send
  blood, with food and oxygen, around your body.
what artificial intelligence is | Artificial intelligence is a computer that learns from many examples, like
  you learn to spot a cat after seeing lots of cats.
why winter is cold | In winter our part of the Earth leans away from the Sun. The sunlight comes in low, the
  days are short, and the ground stays cold.
what a bank does | A bank keeps your money safe. It also lends some of it to people who want to buy a house,
  and they pay a little extra back.
"""
CHILDREN_ASKED = (
    "Explain {} to a five-year-old.",
    "Tell a young child {} in simple words.",
    "In words that a child understands, explain {}.",
)

PROS_AND_CONS = """
working from home | Pro: there is no commute and the hours are flexible. / Con: it is harder to talk to
  colleagues and to end the working day.
owning a car in a city | Pro: you can travel at any time. / Con: parking, fuel and insurance are expensive,
  and traffic is slow.
buying second-hand clothes | Pro: they are cheap and good for the environment. / Con: it takes time to find
  the right size.
living in a small town | Pro: rents are low and people know each other. / Con: there are fewer jobs and
  cultural events.
electronic books | Pro: a whole library fits in a pocket. / Con: the device needs power, and books cannot
  easily be lent.
group projects at school | Pro: students learn to share work and ideas. / Con: some members may do less than
  others.
keeping a cat | Pro: cats are affectionate and need no walks. / Con: they scratch furniture and need care
  during holidays.
learning to cook at home | Pro: it saves money and is often healthier. / Con: shopping and washing up take
  time.
wind power | Pro: it produces electricity without smoke. / Con: it depends on the weather, and turbines
  change the landscape.
public transportation | Pro: it is cheaper and cleaner than driving. / Con: it follows a schedule and may be
  crowded.
studying abroad | Pro: you learn a language and meet new people. / Con: it is costly and you may feel
  homesick.
shopping online | Pro: there is a large choice at any hour. / Con: you cannot try things on, and parcels
  produce waste.
"""
PROS_AND_CONS_ASKED = (
    "Give one advantage and one disadvantage of {}.",
    "Name a pro and a con of {}.",
)

RIDDLES = """
I have hands but cannot clap. What am I? | A clock. Its hands show the time, but they cannot clap.
What gets wetter the more it dries? | A towel. It dries other things and takes up their water.
I have keys but open no doors. What am I? | A piano. Its keys make music instead of opening doors.
A farmer has 17 sheep. All but 9 run away. How many are left? | Nine sheep are left, because "all but 9"
  means that nine of them did not run away.
Which weighs more, a kilogram of iron or a kilogram of feathers? | They weigh the same: each weighs exactly
  one kilogram. The feathers only take up more space.
You overtake the runner in second place. What place are you in now? | You are in second place, because you
  took the place of the runner you passed.
What has a neck but no head? | A bottle. It has a neck, but there is no head on top of it.
A rooster lays an egg on the top of a roof. On which side does it roll down? | It does not roll down at all,
  because roosters do not lay eggs.
Some months have 31 days. How many months have 28 days? | All twelve months have at least 28 days.
What can you hold in your left hand but never in your right hand? | Your right elbow (or your right hand).
  Your left hand can reach it, but your right hand cannot.
Mary's father has three daughters: Anna, Clara and one more. What is the name of the third? | The third
  daughter is Mary, since the question says that he is Mary's father.
What goes up but never comes down? | Your age. It grows every year and never gets smaller.
If two painters paint two walls in two hours, how long do four painters need for four walls? | They need two
  hours. Each painter paints one wall in two hours, and all four work at the same time.
A bat and a ball cost 1.10 dollars together. The bat costs 1 dollar more than the ball. What does the ball
  cost? | The ball costs 5 cents. Then the bat costs 1.05 dollars, and together they cost 1.10 dollars.
What has many teeth but cannot bite? | A comb. It has many teeth, but it only combs hair.
How can you divide 30 by one half and add 10 to get 70? | Dividing by one half is the same as multiplying by
  two: 30 × 2 = 60, and 60 + 10 = 70.
"""

HOUSEHOLD = """
How do I remove a red wine stain from a tablecloth? | Blot the stain at once, cover it with salt or soda
  water, and then wash the cloth in cold water with detergent.
How can I keep herbs fresh for longer? | Trim the stems and stand the herbs in a glass of water like
  flowers, loosely covered, in the refrigerator.
My window keeps steaming up. What can I do? | Open the windows wide for five minutes several times a day,
  keep the room warm and avoid drying laundry there.
How do I save electricity at home? | Switch devices off completely, use LED lamps, wash at low temperatures
  and set the refrigerator to about 5 °C.
How can I get rid of a bad smell in the refrigerator? | Throw out old food, wipe the shelves with vinegar
  water and leave an open bowl of baking soda inside.
How should I water house plants? | Push a finger into the soil and water only when it feels dry. Pour off
  the water that collects in the saucer.
What is the best way to sharpen pencils without a sharpener? | Use a sharp knife, cut away from your body in
  short strokes, and smooth the tip on fine sandpaper.
How do I unclog a sink without chemicals? | Pour in baking soda and vinegar, wait fifteen minutes, rinse
  with hot water, and use a plunger if it still drains slowly.
What should a basic first aid kit contain? | It should contain bandages, sterile dressings, tape, scissors,
  disinfectant, gloves, tweezers and a list of emergency numbers.
How can I hang a picture straight? | Mark the height with a pencil, check the line with a level, and use two
  nails so that the frame cannot tilt.
"""

OPENINGS = """
a lighthouse keeper who is afraid of the sea | Every night Elias lit the lamp with his back to the window,
  because in thirty years he had never once dared to look at the waves.
a robot that learns to paint | Unit 7 had cleaned the gallery for nine years before it dipped its mop in
  blue and drew, very carefully, a bird.
a lost letter | The letter took forty-one years to cross the street, and when Ida opened it, the ink was
  still sure that she would come.
a village where it never rains | In Seco the children drew rain as a gray animal with many legs, for none of
  them had ever seen it.
a detective who is a baker | Flour on the windowsill told Inspector Bloom two things: the thief was
  left-handed, and he knew nothing about pastry.
the last bookstore in the city | The bell above the door had rung twice that week, once for the postman and
  once for the wind.
a time traveler who is always late | By the time Felix reached the year 1600, everyone kept telling him that
  he had just left.
two rival gardeners | Mrs. Pell planted her roses one inch over the fence, and that was how the war of
  Linden Lane began.
a dragon who collects teapots | The knights came for gold, and the dragon, embarrassed, could offer them
  only a choice of six hundred teapots.
a girl who can talk to trains | The night express was shy, but the old freight train told Mara everything,
  slowly, and always starting with the weather.
"""
OPENINGS_ASKED = ("Write the first sentence of a story about {}.", "Begin a short story about {}.")
